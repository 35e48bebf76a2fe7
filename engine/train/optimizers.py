"""Optimizers: the reference's SGD by default, and what recipes of other papers ask for."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from metric_learning.engine.options.parts import OptimizerOptions

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_optimizer(
    model: nn.Module, head: nn.Module, criterion: nn.Module, options: OptimizerOptions
) -> torch.optim.Optimizer:
    """Build the optimizer over the weights of the network, but frozen ones, and of the loss.

    By default SGD with momentum 0.9 (not Nesterov) and L2 1e-4 on all parameters, as the
    reference. The rate of the `head`, what is new in the model beside the backbone, is multiplied
    by `lr_head_mult`, and that of the weights of the loss by `lr_loss_mult`, if that is not None;
    those of the backbone's layers by powers of `layer_decay`.

    Raises ValueError where a multiplier was changed but there is nothing to multiply.
    """
    head_mult = options.lr_head_mult
    loss_mult = head_mult if options.lr_loss_mult is None else options.lr_loss_mult
    in_head = {id(parameter) for parameter in head.parameters()}
    # With all of them there are those of fixed values too: the states of checkpoints count them.
    has_all = options.trainable == "all" and not options.lora_rank
    trained = [p for p in model.parameters() if p.requires_grad or has_all]
    trunk = [parameter for parameter in trained if id(parameter) not in in_head]
    new = [parameter for parameter in trained if id(parameter) in in_head]
    if options.warm_head_steps and not new and not _has_parameters(criterion):
        raise ValueError("--warm_head_steps is not used: nothing but the backbone is trained")
    _check_multipliers(bool(new), _has_parameters(criterion), options)

    groups = [
        group
        for parameters, multiplier in (
            *_layers(model, trunk, options.layer_decay),
            (new, head_mult),
            (criterion.parameters(), loss_mult),
        )
        for group in _groups(parameters, multiplier, options)
    ]

    # Fused ones leave the weights alone where the device finds that a gradient is not finite.
    settings: dict[str, Any] = {"lr": options.lr, "fused": True}
    if options.optimizer == "sgd":
        settings |= {"momentum": options.momentum, "nesterov": options.nesterov}
    else:
        settings["eps"] = options.adam_eps
    return OPTIMIZERS[options.optimizer](groups, **settings)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer a copy of a checkpoint's state; its rates, decays and so on are flags."""
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    groups = [
        {**group, "fused": True}  # by which it decides on which device Adam counts its steps
        for group in state["param_groups"]
    ]

    try:
        optimizer.load_state_dict(deepcopy({**state, "param_groups": groups}))
        _check_state(optimizer)
    except ValueError as error:
        raise ValueError(
            f"the optimizer of the checkpoint is of another kind or version ({error}): give the "
            "checkpoint as --pretrained_model, to start from its weights"
        ) from error
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    if optimizer.state:
        start_momentum(optimizer)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD momenta of 0 before its first step, which leaves them unwritten if not finite."""
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a step would fail, for torch takes any state."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            is_tensor = isinstance(value, torch.Tensor)
            if is_tensor and value.dim() and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} of shape {tuple(value.shape)} for weights of {tuple(parameter.shape)}"
                )
            if not is_tensor and not isinstance(value, int | float | None):
                raise ValueError(f"{name} is a {type(value).__name__}")


def _check_multipliers(has_head: bool, has_weights: bool, options: OptimizerOptions) -> None:
    """Raise ValueError where a factor of the rate has nothing to multiply."""
    multiplied = has_head or (has_weights and options.lr_loss_mult is None)
    if options.lr_head_mult != 1.0 and not multiplied:
        raise ValueError(
            "--lr_head_mult is not used: neither a head (--embedding_size, --pooling=gem, "
            "--feature_norm=bnneck) nor a loss with class weights is trained"
        )
    if options.lr_loss_mult is not None and not has_weights:
        raise ValueError("--lr_loss_mult is not used: the loss of --loss_name has no weights")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _layers(
    model: nn.Module, trunk: list[nn.Parameter], decay: float
) -> list[tuple[list[nn.Parameter], float]]:
    """Group the weights of a backbone by layer, with the factor of each layer's rate.

    decay^(L - l) for layer l of 0..L, the stem first, as timm's `param_groups_layer_decay` has it
    for a network without class layer; BEiT (Bao et al. 2021), https://arxiv.org/abs/2106.08254.
    """
    if decay == 1.0:
        return [(trunk, 1.0)]
    backbone: Any = getattr(model, "backbone", model)
    if not hasattr(backbone, "group_matcher"):
        raise ValueError(
            "--layer_decay is not used: the backbone does not say what its layers are; it is for "
            "models of timm"
        )

    numbers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    in_trunk = {id(parameter) for parameter in trunk}
    layers: dict[int, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        if id(parameter) in in_trunk:
            layers.setdefault(numbers[name], []).append(parameter)
    last = max(layers)
    return [(layers[number], decay ** (last - number)) for number in sorted(layers)]


def _groups(
    parameters: Iterable[nn.Parameter], multiplier: float, options: OptimizerOptions
) -> list[dict[str, Any]]:
    """Group parameters by weight decay; vectors and scalars are biases or belong to norms."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        is_decayed = options.decay_norm_and_bias or parameter.ndim > 1
        (matrices if is_decayed else vectors).append(parameter)
    return [
        {"params": members, "lr_mult": multiplier, "weight_decay": decay}
        for members, decay in ((matrices, options.weight_decay), (vectors, 0.0))
        if members
    ]
