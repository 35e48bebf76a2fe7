"""Every loss and its variants on the device: against the CPU, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.collectives import StageLoss
from metric_learning.engine.train.stages import elem_loss, pair_loss
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, build_loss, layout_of, loss_options
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.softmaxloss import SoftmaxLoss

RANDOM_LOSSES = ("elastic_arc", "elastic_cos", "batch_triplet distance")  # draw on each device
PEERS = ("pml:NCALoss", "pml:MultiSimilarityLoss", "pml:NTXentLoss")
SIZES = (240, 512, 11318), (24, 16, 40)  # B, D and C on a GPU, on a CPU


class Case(NamedTuple):
    """A loss: its name, how it is called and built, the layout of its batches, and their K."""

    name: str
    compute: StageLoss
    build: Callable[[], Any]
    layout: str | None = "blocks"
    samples_each_class: int = 4

    def labels(self, size: int) -> Tensor:
        """Return the labels (B,) of a batch as the loss takes them."""
        rows = torch.arange(size)
        if self.layout == "triples":
            return rows // 3 + (rows % 3 == 2)
        if self.layout == "pairs":
            return torch.where(rows // 2 % 2 == 0, rows // 2, rows)
        return rows // self.samples_each_class


def cases(class_dim: int, dim: int) -> Iterator[Case]:
    """Yield all losses, and variants of some: other triples, a memory, a class layer beside."""
    for name in ELEM_LOSSES:
        build = partial(build_loss, name, class_dim=class_dim, embedding_size=dim)
        yield Case(name, elem_loss, build)
    for name in PAIR_LOSSES:
        k = 2 if name == "npairs" else 4
        options = {"samples_each_class": k} if "samples_each_class" in loss_options(name) else {}
        yield Case(name, pair_loss, partial(build_loss, name, **options), layout_of(name), k)

    for mining in ("all", "semihard", "distance"):
        build = partial(build_loss, "batch_triplet", mining=mining)
        yield Case(f"batch_triplet {mining}", pair_loss, build)
    for name in ("contrastive", "multi_similarity", "smooth_ap"):
        inner: Any = build_loss(name)
        yield Case(f"{name} xbm", pair_loss, partial(CrossBatchMemory, inner, dim, 480))
    eml = build_loss("eml", samples_each_class=4)
    yield Case("eml alpha", pair_loss, lambda: JointLoss(eml, SoftmaxLoss(class_dim, dim), 0.5))
    with suppress(ValueError):  # the package is not there
        for name in PEERS:
            loss_options(name)
            yield Case(name, pair_loss, partial(build_loss, name))


def losses(section: Section) -> None:
    """Compare values and gradients with the CPU's."""
    size, dim, classes = section.size(*SIZES)
    not_equal = []
    for case in cases(classes, dim):
        row = section.attempt(case.name, compare, section, case, torch.randn(size, dim), classes)
        if row is not None and not max(row.values()) < 1e-4 and case.name not in RANDOM_LOSSES:
            not_equal.append(case.name)
    section.note(not_equal=not_equal)


def both_passes(case: Case, drawn: Tensor, classes: int, device: torch.device) -> Callable:
    """Build a loss; return what computes its value and gradient on drawn embeddings (B, D)."""
    torch.manual_seed(0)
    criterion = case.build().train().to(device)
    embeddings = drawn.to(device).clone().requires_grad_()
    labels = (case.labels(len(drawn)) % classes).to(device)

    def once() -> tuple[Tensor, Tensor]:
        criterion.zero_grad()
        loss, _ = case.compute(criterion, embeddings, labels)
        embeddings.grad = None
        loss.backward()
        assert embeddings.grad is not None
        return loss.detach(), embeddings.grad

    return once


def compare(section: Section, case: Case, drawn: Tensor, classes: int) -> dict[str, float]:
    """Return how far values and gradients of a few steps are from the CPU's, relatively."""
    found = []
    for device in (section.device, torch.device("cpu")):
        once = both_passes(case, drawn, classes, device)
        torch.manual_seed(5)
        steps = [once() for _ in range(3)]  # of those with a memory, the later ones use it
        values, gradients = zip(*steps, strict=True)
        found.append((torch.stack(values), torch.stack(gradients)))
    return dict(zip(("value", "gradient"), map(relative, *found), strict=True))


def loss_speed(section: Section) -> None:
    """Seconds of both passes of every loss, on embeddings that lie on the device."""
    size, dim, classes = section.size(*SIZES)
    times, warm_up = section.size((20, 3), (1, 1))
    drawn = torch.randn(size, dim)
    for case in cases(classes, dim):
        once = both_passes(case, drawn, classes, section.device)
        section.attempt(f"{case.name}, seconds", section.seconds_of, once, times, warm_up)
