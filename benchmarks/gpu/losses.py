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
PEERS = ("pml:NCALoss", "pml:MultiSimilarityLoss", "pml:NTXentLoss")
SIZE = 32  # pixels
NOISE = 0.7  # on the images of a step


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
    yield Case("eml alpha", pair_loss, partial(JointLoss, eml, class_dim, dim, 0.5))
    with suppress(ValueError):  # the package is not there
        for name in PEERS:
            loss_options(name)
            yield Case(name, pair_loss, partial(build_loss, name))


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
        return loss, embeddings.grad

    return once


def compare(
    section: Section, case: Case, small: Case, classes: int, dim: int, few: int
) -> dict[str, Any]:
    """Relative differences to the CPU: of value and gradient, of the losses of a few steps."""
    found = []
    drawn = torch.randn(section.size(240, 24), dim, generator=torch.Generator().manual_seed(2))
    for device in (section.device, CPU):
        once = both_passes(case, drawn, classes, device)
        torch.manual_seed(5)
        found.append(once())
    row: dict[str, Any] = dict(zip(("value", "gradient"), map(relative, *found), strict=True))

    expected = curve(section, small, few, CPU, None)
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        losses = curve(section, small, few, section.device, dtype)
        row[f"{name} first"] = relative(losses[0], expected[0])
        row[f"{name} last"] = relative(losses[-5:].mean(), expected[-5:].mean())
    return row | {"finite": bool(losses.isfinite().all())}


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
    """Seconds of both passes of every loss, on embeddings that lie on the device."""
    size, dim, classes = section.size((240, 512, 11318), (24, 16, 40))
    times, warm_up = section.size((20, 3), (1, 1))
    drawn = torch.randn(size, dim)
    for case in cases(classes, dim):
        once = both_passes(case, drawn, classes, section.device)
        section.attempt(f"{case.name}, seconds", section.seconds_of, once, times, warm_up)
