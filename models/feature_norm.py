"""Normalisations between the pooled feature and the embedding layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def layer_norm(feature_size: int) -> nn.Module:
    """Return a layer norm without weights: each feature gets mean 0 and variance 1.

    As NormSoftmax (Zhai and Wu 2019), https://arxiv.org/abs/1811.12649, and ProxyNCA++ (Teh et al.
    2020), https://arxiv.org/abs/2004.01113.
    """
    return nn.LayerNorm(feature_size, elementwise_affine=False)


def bnneck(feature_size: int) -> nn.Module:
    """Return a batch norm whose bias stays zero (BNNeck).

    Luo et al. 2019, section 3.5, https://arxiv.org/abs/1903.07071. It learns its statistics also
    where --freeze_bn keeps those of the backbone.

    Differs from the paper, where the triplet loss takes the feature before the norm and the class
    loss the one behind it: here every loss takes the embedding, which is behind the norm (and
    behind the embedding layer, if there is one), and so does the search, as FastReID's retrieval
    project has it.
    """
    norm = nn.BatchNorm1d(feature_size)
    norm.bias.requires_grad_(False)
    return norm


# Maps the width of the feature to the module.
FEATURE_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "layernorm": layer_norm,
    "bnneck": bnneck,
}
