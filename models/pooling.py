"""Poolings that may stand where a backbone averages its feature map."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, SelectAdaptivePool2d
from torch import Tensor, nn


class AvgPooling(nn.Module):
    """Mean of each channel over the feature map, whose height and width are `dims`.

    Shape:
        maps: (B, C, H, W) float, or (B, H, W, C) with `dims` (1, 2).
        returns: (B, C) float; with `keepdim` (B, C, 1, 1) or (B, 1, 1, C).
    """

    def __init__(self, dims: tuple[int, int] = (2, 3), keepdim: bool = False) -> None:
        super().__init__()
        self.dims = dims
        self.keepdim = keepdim

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled feature."""
        return maps.mean(self.dims, keepdim=self.keepdim)


class MaxPooling(AvgPooling):
    """Maximum of each channel, as `AvgPooling`; positions that tie share the gradient."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled feature."""
        return maps.amax(self.dims, keepdim=self.keepdim)


class AvgMaxPooling(AvgPooling):
    """Sum of mean and maximum of each channel, as `AvgPooling`.

    Proxy-Anchor (Kim et al. 2020), authors' code,
    https://github.com/tjddus9597/Proxy-Anchor-CVPR2020.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled feature."""
        means = maps.mean(self.dims, keepdim=self.keepdim)
        return means + maps.amax(self.dims, keepdim=self.keepdim)


class GeMPooling(AvgPooling):
    """Generalised mean of each channel, as `AvgPooling`, with one learned exponent p, (1,).

    f_c = (mean_hw max(x_chw, eps)^p)^(1 / p), p from 3: between the mean (p = 1) and the maximum
    (p -> infinity). Radenovic et al. 2018, section 3.2, https://arxiv.org/abs/1711.02512. The least
    value eps of a map makes power and gradient finite.

    It computes in float32 at least: x^3 leaves the range of float16 at x = 40.
    """

    def __init__(
        self,
        dims: tuple[int, int] = (2, 3),
        keepdim: bool = False,
        p: float = 3.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dims, keepdim)
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled feature."""
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp(min=self.eps)
        return maps.pow(self.p).mean(self.dims, keepdim=self.keepdim).pow(1 / self.p)


POOLINGS: dict[str, type[AvgPooling]] = {
    "avg": AvgPooling,
    "max": MaxPooling,
    "avg_max": AvgMaxPooling,
    "gem": GeMPooling,
}


def replace_pooling(backbone: nn.Module, pooling: str) -> None:
    """Put a pooling where a timm backbone averages its feature map; what follows stays.

    Nearly all convolutional backbones of timm end in a pooling layer, and so do transformers with a
    feature map (Swin); vision transformers do not.

    Raises:
        ValueError: the pooling is unknown, or the backbone does not end in a pooling layer.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"expected --pooling=own, {', '.join(POOLINGS)}, found {pooling}")
    layers: list[Any] = [
        part
        for part in backbone.modules()
        if isinstance(part, SelectAdaptivePool2d) and part.pool_type
    ]
    if len(layers) != 1:
        raise ValueError(
            f"--pooling={pooling} replaces the layer that averages a feature map, in which this "
            "model, like vision transformers, does not end: leave the flag out"
        )

    [layer] = layers
    own = layer.pool
    is_fast = isinstance(own, FastAdaptiveAvgPool)
    dims, keepdim = (tuple(own.dim), not own.flatten) if is_fast else ((2, 3), True)
    layer.pool = POOLINGS[pooling](dims, keepdim)
    layer.pool_type = pooling
