"""No loss waits for the device: neither in its forward nor in its backward pass."""

import pytest
import torch
from pretended_device import OnDevice, counted_waits, put_on_device

from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, build_loss, layout_of
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.mining import MINERS
from metric_learning.losses.pairs import LabelLoss
from metric_learning.losses.scaledloss import ScaledLoss
from metric_learning.losses.similaritydistillation import SimilarityDistillation
from metric_learning.losses.softmaxloss import SoftmaxLoss

B, D, C, K = 24, 16, 12, 4
LABELS = {
    "blocks": torch.arange(B) // K,
    "labels": torch.arange(B) // K,
    "pairs": torch.arange(B) // 2,
    "triples": torch.arange(B) // 3 + (torch.arange(B) % 3 == 2),
}


def cases():
    sizes = {"class_dim": C, "embedding_size": D}
    for name in ELEM_LOSSES:
        yield name, "labels", {**sizes}, None
    yield "softmax", "labels", {**sizes, "label_smoothing": 0.1, "class_dropout": 0.5}, None
    yield "elastic_arc", "labels", {**sizes, "elastic_plus": True}, None
    for name in PAIR_LOSSES:
        is_block = layout_of(name) == "blocks" and name != "npairs"
        layout = "pairs" if name == "npairs" else layout_of(name)
        yield name, layout, {"samples_each_class": K} if is_block else {}, None
    for mining in MINERS:
        yield "batch_triplet", "labels", {"mining": mining}, None
    yield "batch_triplet", "labels", {"soft_margin": True, "mining": "semihard"}, None
    for name in PAIR_LOSSES:
        if issubclass(PAIR_LOSSES[name], LabelLoss):
            yield name, "labels", {}, lambda loss: CrossBatchMemory(loss, D, 60)
    for layer in (SoftmaxLoss(C, D), build_loss("adaface", **sizes)):
        blocks = {"samples_each_class": K}
        yield "eml", "blocks", blocks, lambda loss, layer=layer: JointLoss(loss, layer, 0.5)
    yield "eml", "blocks", {"samples_each_class": K}, lambda loss: ScaledLoss(loss, 3.0)


@pytest.mark.parametrize(("name", "layout", "options", "around"), [*cases()])
def test_neither_pass_waits(name, layout, options, around):
    criterion = build_loss(name, **options)
    criterion = put_on_device(around(criterion) if around else criterion).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # a memory is filled, and begins anew
        embeddings = OnDevice(torch.randn(B, D, generator=generator)).requires_grad_()
        with counted_waits() as waits:
            loss = criterion(embeddings, LABELS[layout])
            (loss[0] if isinstance(loss, tuple) else loss).backward()
        assert waits == []
        assert embeddings.grad.inner.isfinite().all()


def test_what_a_teacher_adds_waits_for_nothing():
    generator = torch.Generator().manual_seed(0)
    embeddings = OnDevice(torch.randn(B, D, generator=generator)).requires_grad_()
    targets = OnDevice(torch.randn(B, 2 * D, generator=generator))
    criterion = put_on_device(SimilarityDistillation())
    with counted_waits() as waits:
        criterion(embeddings, targets).backward()
    assert waits == [] and embeddings.grad.inner.isfinite().all()


def test_what_asks_a_tensor_of_the_device_is_seen():
    values = OnDevice(torch.arange(4.0)).requires_grad_()
    for ask in (
        lambda: bool(values.sum() > 0),
        lambda: (values > 1).nonzero(),
        lambda: values[values > 1].sum().backward(),
    ):
        with counted_waits() as waits:
            ask()
        assert waits
