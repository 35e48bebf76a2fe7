"""Low-rank adapters beside the linear layers of a backbone, by peft, and without it afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metric_learning.common.optional import import_optional
from metric_learning.models.embedder import EmbeddingModel

BASE = ".base_layer."  # where peft keeps the layer that an adapter lies beside
ADAPTER = "default"  # peft's name of the only one


def add_lora(model: EmbeddingModel, rank: int) -> None:
    """Freeze a backbone and put trained matrices beside its linear layers, in place.

    W x + B A x instead of W x, A (rank, in) drawn, B (out, rank) zero at first, so that nothing
    changes before the first step; what lies behind the backbone trains as ever. LoRA (Hu et al.
    2021), section 4.1, https://arxiv.org/abs/2106.09685, with its alpha at the rank.

    Raises ValueError where the package peft is not there, or the backbone has no linear layers.
    """
    peft = import_optional("peft", "--lora_rank")
    names = [
        name for name, module in model.backbone.named_modules() if isinstance(module, nn.Linear)
    ]
    if not names:
        raise ValueError(
            f"--lora_rank is not used: {model.name} has no linear layers, as transformers have"
        )
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    peft.inject_adapter_in_model(config, model.backbone)  # which freezes all else in it
    for part in model.new_parts().values():
        part.requires_grad_(True)


def has_lora(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(hasattr(module, "lora_A") for module in model.modules())


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model with W + B A in place of its adapters, by the names without."""
    state: dict[str, Any] = model.state_dict()
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            delta = module.get_delta_weight(ADAPTER)  # type: ignore[operator]
            state[f"{name}{BASE}weight"] = state[f"{name}{BASE}weight"] + delta
    return {name.replace(BASE, "."): value for name, value in state.items() if ".lora_" not in name}
