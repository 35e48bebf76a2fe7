"""Cross-batch memory and the joint loss: what is wrapped around a stage-2 loss."""

import pytest
import torch

from metric_learning.losses import PAIR_LOSSES, build_loss
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.pairs import LabelLoss, pairs_with
from metric_learning.losses.softmaxloss import SoftmaxLoss

pml = pytest.importorskip("pytorch_metric_learning.losses")

COMPARABLE = [name for name, loss in PAIR_LOSSES.items() if issubclass(loss, LabelLoss)]
SIZE = 6


def batches(num=5, num_images=8):
    rng = torch.Generator().manual_seed(0)
    for _ in range(num):
        labels = torch.randperm(num_images, generator=rng) // 2
        yield torch.randn(num_images, SIZE, generator=rng), labels


@pytest.mark.parametrize("name", COMPARABLE)
def test_memory_adds_the_loss_against_the_newest_embeddings(name):
    """The naive way: keep a list, compare with its last entries, the own one left out."""
    memory = CrossBatchMemory(build_loss(name), SIZE, size=20)
    plain, kept, kept_labels = build_loss(name), torch.empty(0, SIZE), torch.empty(0).long()
    for embeddings, labels in batches():
        embeddings.requires_grad_()
        kept = torch.cat([kept, embeddings.detach()])[-20:]
        kept_labels = torch.cat([kept_labels, labels])[-20:]
        own = torch.arange(len(kept) - len(labels), len(kept))
        pairs = pairs_with(embeddings, labels, kept, kept_labels, own, plain.place)
        expected = plain(embeddings, labels) + plain.compare(pairs)
        loss = memory(embeddings, labels)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, embeddings)[0] for value in (loss, expected)),
            atol=1e-5,
            rtol=1e-4,
        )


def test_the_part_against_the_memory_is_that_of_pytorch_metric_learning():
    ours = CrossBatchMemory(build_loss("supcon"), SIZE, size=20)
    theirs = pml.CrossBatchMemory(pml.SupConLoss(0.1), SIZE, memory_size=20)
    plain = build_loss("supcon")
    for embeddings, labels in batches():
        expected = plain(embeddings, labels) + theirs(embeddings, labels)
        torch.testing.assert_close(ours(embeddings, labels), expected)


def test_the_part_against_the_memory_is_that_of_its_authors():
    """Their loop: the pairs of cosine 1, such as that of an image with its entry, are left out."""
    memory = CrossBatchMemory(build_loss("xbm_contrastive"), SIZE, size=20).double()
    kept, kept_labels = torch.empty(0, SIZE).double(), torch.empty(0).long()

    def theirs(rows, labels, others, other_labels):
        total = 0.0
        for row, label in zip(rows, labels, strict=True):
            cosines = others @ row
            positive = cosines[other_labels == label]
            negative = cosines[other_labels != label]
            total += (1 - positive[positive < 1 - 1e-5]).sum() + negative[negative > 0.5].sum()
        return total / len(rows)

    for embeddings, labels in batches():
        rows = torch.nn.functional.normalize(embeddings.double())
        kept = torch.cat([kept, rows])[-20:]
        kept_labels = torch.cat([kept_labels, labels])[-20:]
        expected = theirs(rows, labels, rows, labels) + theirs(rows, labels, kept, kept_labels)
        torch.testing.assert_close(memory(embeddings.double(), labels), expected)


def test_memory_is_not_filled_before_its_start():
    memory, plain = CrossBatchMemory(build_loss("supcon"), SIZE, 20, start=2), build_loss("supcon")
    for number, (embeddings, labels) in enumerate(batches(3)):
        is_plain = torch.equal(memory(embeddings, labels), plain(embeddings, labels))
        assert is_plain == (number < 2)
    assert memory.num_remembered == 8 and memory.embeddings[8:].eq(0).all()


def test_memory_goes_on_from_its_state_dict():
    whole = CrossBatchMemory(build_loss("circle"), SIZE, size=20, start=1)
    half = CrossBatchMemory(build_loss("circle"), SIZE, size=20, start=1)
    for number, batch in enumerate(batches()):
        expected = whole(*batch)
        if number == 3:
            resumed = CrossBatchMemory(build_loss("circle"), SIZE, size=20, start=1)
            resumed.load_state_dict(half.state_dict())
            half = resumed
        assert torch.equal(half(*batch), expected)


def test_memory_takes_half_precision_and_refuses_a_larger_batch():
    embeddings, labels = next(batches(1))
    loss = CrossBatchMemory(build_loss("supcon"), SIZE, size=8)(embeddings.half(), labels)
    assert loss.dtype == torch.float32 and loss.isfinite()
    with pytest.raises(ValueError, match="batch of 8 images does not fit a memory of 7"):
        CrossBatchMemory(build_loss("supcon"), SIZE, size=7)(embeddings, labels)


@pytest.mark.parametrize("name", ["triplet", "eml", "supcon"])
def test_joint_loss_is_the_sum_of_its_parts(name):
    torch.manual_seed(0)
    joint = JointLoss(build_loss(name), SoftmaxLoss(5, SIZE), alpha=0.3)
    assert {key for key, _ in joint.named_parameters()} == {
        "class_layer.weight",
        "class_layer.bias",
    }
    embeddings = torch.randn(6, SIZE, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 2, 2, 3] if name == "triplet" else [0, 0, 1, 1, 4, 4])
    loss, (metric, cross_entropy, logits) = joint(embeddings, labels)
    assert torch.equal(metric, build_loss(name)(embeddings, labels))
    torch.testing.assert_close(logits, joint.class_layer.class_scores(embeddings))
    torch.testing.assert_close(
        cross_entropy, torch.nn.functional.cross_entropy(logits, labels), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(loss, metric + 0.3 * cross_entropy)
    loss.backward()
    assert joint.class_layer.weight.grad.abs().sum() > 0
