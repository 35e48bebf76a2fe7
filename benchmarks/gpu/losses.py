"""Every loss and its variants on the device: against the CPU, and how long it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.collectives import StageLoss
from metric_learning.engine.parallel.devices import place
from metric_learning.engine.train.stages import elem_loss, pair_loss
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, build_loss, layout_of, loss_options
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.models import build_model

CPU = torch.device("cpu")
RANDOM_LOSSES = ("elastic_arc", "elastic_cos", "batch_triplet distance")  # draw on each device
SIZE = 32  # pixels
NOISE = 0.7  # on the images of a step


class Case(NamedTuple):
    """A loss: its name, how it is called and built, the layout of its batches, and their K."""

    name: str
    compute: StageLoss
    build: Callable[[], Any]
    layout: str | None
    samples_each_class: int

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
        yield Case(name, elem_loss, build, None, 4)
    for name in PAIR_LOSSES:
        k = 2 if name == "npairs" else 4
        takes_k = "samples_each_class" in loss_options(name)
        build = partial(build_loss, name, **({"samples_each_class": k} if takes_k else {}))
        yield Case(name, pair_loss, build, layout_of(name), k)

    variants: dict[str, Callable[[], Any]] = {
        f"batch_triplet {mining}": partial(build_loss, "batch_triplet", mining=mining)
        for mining in ("all", "semihard", "distance")
    }
    for name in ("contrastive", "multi_similarity", "smooth_ap"):
        inner: Any = build_loss(name)
        variants[f"{name} xbm"] = partial(CrossBatchMemory, inner, dim, 480)
    for name in ("pml:NCALoss", "pml:MultiSimilarityLoss", "pml:NTXentLoss"):
        with suppress(ValueError):  # the package is not there
            loss_options(name)
            variants[name] = partial(build_loss, name)
    eml = build_loss("eml", samples_each_class=4)
    variants["eml alpha"] = partial(JointLoss, eml, class_dim, dim, 0.5)
    for name, make in variants.items():
        yield Case(name, pair_loss, make, "blocks", 4)


def losses(section: Section) -> None:
    """Compare values and gradients with the CPU's, and curves of a few steps in two precisions."""
    torch.set_num_threads(max(1, min(8, (os.cpu_count() or 2) // 2)))
    classes, dim, few = section.size((11318, 512, 48), (40, 16, 24))
    width = build_model("test_resnet", image_size=SIZE).embedding_size
    rows: dict[str, dict[str, Any]] = {}
    for case, small in zip(cases(classes, dim), cases(few, width), strict=True):
        found = section.attempt(case.name, compare, section, case, small, classes, dim, few)
        if found is not None:
            rows[case.name] = found

    exact = {name: row for name, row in rows.items() if name not in RANDOM_LOSSES}
    section.note(
        not_equal=[n for n, r in exact.items() if max(r["value"], r["gradient"]) > 1e-4],
        bfloat16_far=[n for n, r in exact.items() if r["bfloat16 last"] > 0.1],
        not_finite=[name for name, row in rows.items() if not row["finite"]],
    )


def compare(
    section: Section, case: Case, small: Case, classes: int, dim: int, few: int
) -> dict[str, Any]:
    """Relative differences to the CPU: of value and gradient, of the losses of a few steps."""
    size, found = section.size(240, 24), []
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(2))
    for device in (CPU, section.device):
        torch.manual_seed(0)
        criterion = case.build().train().to(device)
        torch.manual_seed(5)
        embeddings = drawn.to(device).clone().requires_grad_()
        loss, _ = case.compute(criterion, embeddings, (case.labels(size) % classes).to(device))
        loss.backward()
        found.append((loss, embeddings.grad))
    row: dict[str, Any] = {"value": relative(found[1][0], found[0][0])}
    row["gradient"] = relative(found[1][1], found[0][1])

    expected = curve(section, small, few, CPU, None)
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        losses = curve(section, small, few, section.device, dtype)
        row[f"{name} first"] = relative(losses[0], expected[0])
        row[f"{name} last"] = relative(losses[-5:].mean(), expected[-5:].mean())
    return row | {"finite": bool(losses.isfinite().all()), "ends": losses[[0, -1]].tolist()}


def curve(
    section: Section, case: Case, size: int, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """Train a small network for a few steps on random images; return the losses."""
    draw = torch.Generator().manual_seed(1)
    prototypes = torch.randn(size, 3, SIZE, SIZE, generator=draw)
    torch.manual_seed(0)
    model, criterion = build_model("test_resnet", image_size=SIZE), case.build().to(device)
    place(model, device)
    model.train(), criterion.train()
    parameters = [*model.parameters(), *criterion.parameters()]
    is_fused = device.type == "cuda"
    optimizer = torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=1e-4, fused=is_fused)
    labels, found = case.labels(size), []

    for _ in range(section.size(20, 3)):
        noise = NOISE * torch.randn(size, 3, SIZE, SIZE, generator=draw)
        images = (prototypes[labels % size] + noise).to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            embeddings = model(images)
        loss, _ = case.compute(criterion, embeddings.float(), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        found.append(loss.detach().cpu())
    return torch.stack(found)


def loss_speed(section: Section) -> None:
    """Milliseconds of both passes of every loss, on embeddings that lie on the device."""
    size, dim, classes = section.size((240, 512, 11318), (24, 16, 40))
    for case in cases(classes, dim):
        section.attempt(case.name, milliseconds, section, case, size, dim, classes)


def milliseconds(section: Section, case: Case, size: int, dim: int, classes: int) -> float:
    """Return how long both passes of a loss take."""
    criterion = case.build().train().to(section.device)
    embeddings = torch.randn(size, dim, device=section.device, requires_grad=True)
    labels = (case.labels(size) % classes).to(section.device)

    def once() -> None:
        embeddings.grad = None
        criterion.zero_grad()
        case.compute(criterion, embeddings, labels)[0].backward()

    return 1e3 * section.seconds_of(once, *section.size((20, 3), (1, 1)))
