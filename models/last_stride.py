"""A last stage that keeps the size of its feature map, as retrieval of details asks for."""

from __future__ import annotations

from timm.layers.blur_pool import BlurPool2d
from torch import nn


def remove_last_stride(backbone: nn.Module) -> None:
    """Let the last stage of a ResNet of timm or a relative step by 1: its map has twice the side.

    The weights stay as they are, as do those of a file. Nothing is dilated, unlike timm's
    `output_stride`. Luo et al. 2019, section 3.4, https://arxiv.org/abs/1903.07071.

    Raises:
        ValueError: it is another model, or it steps by a layer that blurs.
    """
    stage = getattr(backbone, "layer4", None)
    if stage is None or any(isinstance(part, BlurPool2d) for part in stage.modules()):
        raise ValueError(
            "--last_stride=1 is for ResNets and their relatives (ResNeXt, SE-ResNeXt, Res2Net, "
            "ResNeSt) without blur: leave the flag out"
        )
    for path, part in list(stage[0].named_modules()):
        if isinstance(part, nn.AvgPool2d) and part.kernel_size == part.stride:
            stage[0].set_submodule(path, nn.Identity())
        elif isinstance(part, nn.Conv2d | nn.AvgPool2d):
            part.stride = (1, 1)
