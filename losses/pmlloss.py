"""Losses of pytorch-metric-learning by name, for those that this project does not have itself."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from metric_learning.common.optional import import_optional
from metric_learning.losses.functional import check_batch, checked_classes, full_precision, sent

PREFIX = "pml:"
CLASS_DIM = "num_classes"  # what the package calls class_dim


class PmlLoss(nn.Module):
    """A loss of pytorch-metric-learning, computed in float32 for half-precision embeddings.

    https://kevinmusgrave.github.io/pytorch-metric-learning/losses/. The name is `pml:` and that of
    its class; its options are by name, class_dim being what the package calls num_classes.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64, in any order; in 0..C-1 for a loss with class weights.
        returns: () float32.

    Raises:
        ValueError: there is no such loss, it refuses its options or a label is out of range.
    """

    layout = "labels"

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.class_dim = options.pop("class_dim", None)
        if self.class_dim is not None:
            options[CLASS_DIM] = self.class_dim
        try:
            self.loss = find_pml(name)(**options)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{name} cannot be built with {options}: {error}") from error

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the batch."""
        check_batch(embeddings, labels)
        if self.class_dim is not None:
            checked_classes(embeddings, labels, self.class_dim)
        loss: Tensor = self.loss(full_precision(embeddings), sent(labels, embeddings.device))
        return loss


def find_pml(name: str) -> type[nn.Module]:
    """Return the class of a loss named with the prefix `pml:`; ValueError if there is none."""
    losses = import_optional("pytorch_metric_learning.losses", name, "pytorch-metric-learning")
    base: type[nn.Module] = losses.BaseMetricLossFunction
    known: dict[str, type[nn.Module]] = {
        kind.__name__: kind
        for kind in vars(losses).values()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }

    if name.removeprefix(PREFIX) not in known:
        raise ValueError(f"pytorch-metric-learning has no loss {name!r}: {', '.join(known)}")
    return known[name.removeprefix(PREFIX)]


def pml_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a loss of the package: its own and, if it hands them on, inherited."""
    options: dict[str, inspect.Parameter] = {}
    loss = find_pml(name)
    for kind in inspect.getmro(loss):
        if "__init__" not in vars(kind) or kind is nn.Module:
            continue

        parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            # A parent's options without a default are given by the loss itself, but for the sizes.
            is_open = kind is loss or parameter.default is not parameter.empty
            if is_named and (is_open or parameter.name in (CLASS_DIM, "embedding_size")):
                own_name = "class_dim" if parameter.name == CLASS_DIM else parameter.name
                options.setdefault(own_name, parameter)

        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options
