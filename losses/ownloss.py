"""Losses of one's own by name, `module:Class`: a class of any module that Python finds."""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module

from torch import Tensor, nn

from metric_learning.losses.functional import sent

# Those that flags are parsed as.
OPTION_TYPES = (int, float, float | None, bool, str, tuple[int, ...])


def find_own(name: str) -> type[nn.Module]:
    """Import the class of a loss by its name, `module:Class`.

    The module is looked for where Python looks, then in the working directory. The class is an
    nn.Module with a class attribute `stage`, 1 or 2, and keeps that stage's contract, see
    `losses.table`.

    Raises:
        ValueError: the module cannot be imported, holds no such class, or an option of the class
            is not annotated as one of OPTION_TYPES.
    """
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except Exception as error:  # a module of others can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"loss {name}: cannot import {module_name} ({reason})") from error

    loss = getattr(module, class_name, None)
    if loss is None:
        raise ValueError(f"loss {name}: {module!r} has no {class_name!r}")
    if not inspect.isclass(loss) or not issubclass(loss, nn.Module):
        raise ValueError(f"loss {name}: expected a subclass of torch.nn.Module, found {loss!r}")
    if getattr(loss, "stage", None) not in (1, 2):
        found = getattr(loss, "stage", "none")
        raise ValueError(
            f"loss {name}: expected a class attribute `stage`, 1 for a loss that returns (loss, "
            f"logits) or 2 for one that returns the loss alone, found {found}"
        )
    for option, parameter in options_of(loss).items():
        if parameter.annotation not in OPTION_TYPES:
            raise ValueError(
                f"loss {name}: annotate its option {option} as int, float, bool, str or "
                "tuple[int, ...]"
            )
    return loss


def options_of(loss: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the options of a class, in the order of its signature, annotations as types."""
    return {
        name: parameter
        for name, parameter in inspect.signature(loss, eval_str=True).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def put_labels_beside(loss: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Hand a loss the labels on the device of the embeddings; a hook before its forward pass."""
    embeddings, labels = inputs
    return embeddings, sent(labels, embeddings.device)
