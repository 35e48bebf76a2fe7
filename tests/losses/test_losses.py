"""Losses against the reference's own outputs, naive loops, finite differences and odd batches."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_classes import CLASS_FORMULAS
from naive_pairs import FORMULAS

from metric_learning.losses import (
    ELEM_LOSSES,
    PAIR_LOSSES,
    SplittableLoss,
    build_loss,
    layout_of,
    loss_options,
)
from metric_learning.losses.functional import (
    PADDLE_LOGIT_FLOOR,
    cross_entropy,
    squared_distances,
    tied_max,
    tied_min,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
LOSS_FIXTURES = sorted(
    path.name
    for name in (ELEM_LOSSES | PAIR_LOSSES)
    for path in FIXTURES.glob(f"{name}_[0-9]*.npz")
)
CLASS_DIM, SIZE = 7, 12
# Labels of a small batch of each layout; stage 1 takes any.
LABELS = {
    "blocks": [0, 0, 2, 2, 5, 5],
    "labels": [5, 0, 2, 0, 5, 2],
    "triples": [0, 0, 1, 2, 2, 3],
    "pairs": [0, 0, 1, 2, 3, 3],
}
LAYOUTS = {name: layout_of(name) for name in PAIR_LOSSES}
POSITIONAL = [name for name, layout in LAYOUTS.items() if layout != "labels"]


def criterion_of(name, class_dim=CLASS_DIM):
    options = {"class_dim": class_dim, "embedding_size": SIZE} if name in ELEM_LOSSES else {}
    for scale in {"scale", "arc_scale"} & loss_options(name).keys():
        options[scale] = 16.0  # keeps costs below the limit of `functional.cross_entropy`
    torch.manual_seed(3)
    return build_loss(name, **options).eval()  # states and draws: test_class_losses.py


def batch_of(name, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.tensor(LABELS[LAYOUTS.get(name, "blocks")])
    return torch.randn(6, SIZE, generator=rng, dtype=torch.float64).to(dtype), labels


def loss_of(criterion, name, embeddings, labels):
    result = criterion(embeddings, labels)
    return result[0] if name in ELEM_LOSSES else result


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12)


def test_every_loss_of_the_reference_has_fixtures():
    names = {name.split("_")[0] for name in LOSS_FIXTURES}
    assert names == {"softmax", "arcmargin", "triplet", "quadruplet", "eml", "npairs"}


@pytest.mark.parametrize("fixture", LOSS_FIXTURES)
def test_value_and_gradients_are_the_reference_s(fixture):
    data = np.load(FIXTURES / fixture)
    options = json.loads(str(data["config"]))
    name = options.pop("loss")
    embeddings = torch.tensor(data["x"], requires_grad=True)
    if name in ELEM_LOSSES:
        options["embedding_size"] = embeddings.shape[1]
    criterion = build_loss(name, **options)
    transposed = name == "softmax"  # the reference stores its linear layer as D x C
    if name in ELEM_LOSSES:
        weight = data["w0"].T if transposed else data["w0"]
        criterion.weight.data.copy_(torch.tensor(weight))
    if name == "softmax":
        criterion.bias.data.copy_(torch.tensor(data["w1"]))
    loss = loss_of(criterion, name, embeddings, torch.tensor(data["y"]))
    loss.backward()
    assert relative_error(loss.detach().numpy(), data["loss"][0]) < 1e-5
    assert relative_error(embeddings.grad.numpy(), data["grad_x"]) < 1e-5
    if name in ELEM_LOSSES:
        gradient = criterion.weight.grad.numpy()
        expected = data["grad_w0"].T if transposed else data["grad_w0"]
        assert relative_error(gradient, expected) < 1e-5
    if name == "softmax":
        assert relative_error(criterion.bias.grad.numpy(), data["grad_w1"]) < 1e-5


@pytest.mark.parametrize("fixture", [name for name in LOSS_FIXTURES if "arcmargin" in name])
def test_logits_give_the_reference_s_probabilities(fixture):
    data = np.load(FIXTURES / fixture)
    options = json.loads(str(data["config"])) | {"embedding_size": data["x"].shape[1]}
    criterion = build_loss(options.pop("loss"), **options)
    criterion.weight.data.copy_(torch.tensor(data["w0"]))
    logits = criterion(torch.tensor(data["x"]), torch.tensor(data["y"]))[1]
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), data["prob"], atol=2e-6)


@pytest.mark.parametrize("name", [*ELEM_LOSSES, *PAIR_LOSSES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_is_the_formula_s(name, seed):
    criterion = criterion_of(name)
    embeddings, labels = batch_of(name, torch.float64, seed)
    criterion.double()
    formula = (CLASS_FORMULAS | FORMULAS)[name]
    expected = formula(criterion, embeddings.numpy(), labels.tolist())
    assert loss_of(criterion, name, embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [*ELEM_LOSSES, *PAIR_LOSSES])
def test_gradient_is_the_derivative(name):
    criterion = criterion_of(name).double()
    embeddings, labels = batch_of(name, torch.float64)
    embeddings.requires_grad_()

    def value(rows):
        return loss_of(criterion, name, rows, labels)

    if name == "quadruplet":  # both copies of an extreme carry the whole gradient
        value(embeddings).backward()
        numeric = torch.zeros_like(embeddings)
        with torch.no_grad():
            for i in range(embeddings.numel()):
                step = torch.zeros(embeddings.numel(), dtype=torch.float64)
                step[i] = 1e-6
                step = step.view_as(embeddings)
                slope = (value(embeddings + step) - value(embeddings - step)) / 2e-6
                numeric.view(-1)[i] = slope
        torch.testing.assert_close(embeddings.grad, 2 * numeric, rtol=1e-5, atol=1e-8)
    elif name in ("circle", "adaface", "contextual"):  # no gradient of some factors, or of a step
        assert not torch.autograd.gradcheck(value, (embeddings,), raise_exception=False)
    else:
        assert torch.autograd.gradcheck(value, (embeddings,))


@pytest.mark.parametrize("name", [*ELEM_LOSSES, *PAIR_LOSSES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(name, dtype):
    criterion = criterion_of(name)
    embeddings, labels = batch_of(name, dtype)
    half = loss_of(criterion, name, embeddings, labels)
    assert half.dtype == torch.float32
    assert half.item() == loss_of(criterion, name, embeddings.float(), labels).item()


@pytest.mark.parametrize("name", [*ELEM_LOSSES, *PAIR_LOSSES])
def test_collapsed_and_huge_embeddings_stay_finite(name):
    labels = batch_of(name)[1]
    for embeddings in (torch.ones(6, SIZE), torch.zeros(6, SIZE), 1e3 * batch_of(name)[0]):
        embeddings = embeddings.requires_grad_()
        loss = loss_of(criterion_of(name), name, embeddings, labels)
        loss.backward()
        assert loss.isfinite() and embeddings.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in POSITIONAL if LAYOUTS[name] != "pairs"])
def test_labels_that_do_not_fit_the_positions_are_refused(name):
    embeddings, labels = batch_of(name)
    with pytest.raises(ValueError, match="found labels|expected"):
        criterion_of(name)(embeddings, labels.roll(1))


@pytest.mark.parametrize("name", POSITIONAL)
def test_a_batch_with_a_part_of_a_group_is_refused(name):
    embeddings, labels = batch_of(name)
    with pytest.raises(ValueError, match="batch of 5 images"):
        criterion_of(name)(embeddings[:5], labels[:5])


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_labels_of_another_number_or_kind_are_refused(name):
    embeddings, labels = batch_of(name)
    for wrong in (labels[:4], labels.float()):
        with pytest.raises(ValueError, match="expected 6 integer labels"):
            criterion_of(name)(embeddings, wrong)
    with pytest.raises(ValueError, match="expected embeddings as a float tensor"):
        criterion_of(name)(embeddings[0], labels)


@pytest.mark.parametrize("name", ["quadruplet", "eml", "npairs", "quadrupletloss", "emlloss"])
def test_a_class_in_two_blocks_is_refused(name):
    with pytest.raises(ValueError, match="each block of its own class"):
        criterion_of(name)(torch.randn(6, SIZE), torch.tensor([1, 1, 2, 2, 1, 1]))
    with pytest.raises(ValueError, match="at least 2 classes"):
        criterion_of(name)(torch.randn(2, SIZE), torch.tensor([1, 1]))


@pytest.mark.parametrize("name", ELEM_LOSSES)
@pytest.mark.parametrize("label", [-1, CLASS_DIM])
def test_label_outside_the_classes_is_refused(name, label):
    embeddings, labels = batch_of(name)
    labels[0] = label
    with pytest.raises(ValueError, match=f"labels in 0..{CLASS_DIM - 1}"):
        criterion_of(name)(embeddings, labels)


def test_build_loss_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown loss 'tripplet': choose from softmax"):
        build_loss("tripplet")
    with pytest.raises(ValueError, match="triplet does not use arc_scale: its options are margin"):
        build_loss("triplet", arc_scale=3.0)
    with pytest.raises(ValueError, match="softmax needs class_dim, embedding_size"):
        build_loss("softmax")
    with pytest.raises(ValueError, match="samples_each_class 2"):
        build_loss("npairs", samples_each_class=3)
    with pytest.raises(ValueError, match="at least 2"):
        build_loss("eml", samples_each_class=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("batch_triplet", {"mining": "easy"}, "mining of all, hard, semihard, distance.*easy"),
        ("batch_triplet", {"soft_margin": True, "margin": 0.3}, "0.3 is not used with soft_margin"),
        ("multi_similarity", {"ms_alpha": 0.0}, "ms_alpha above 0, found 0"),
        ("multi_similarity", {"ms_beta": 0.0}, "ms_beta above 0"),
        ("supcon", {"temperature": 0.0}, "temperature above 0"),
        ("smooth_ap", {"rank_temperature": 0.0}, "rank_temperature above 0"),
        ("recall_surrogate", {"recall_temperature": 0.0}, "recall_temperature above 0"),
        ("recall_surrogate", {"recall_ks": (0, 1)}, "recall_ks of at least 1"),
        ("roadmap", {"rank_temperature": 0.0}, "rank_temperature above 0"),
        ("contextual", {"contextual_weight": 0.95}, "of 1 at most together, found 0.95 and 0.1"),
        ("hyperbolic", {"hyp_c": 0.0}, "hyp_c above 0"),
        ("hyperbolic", {"hyp_clip": 0.0}, "hyp_clip above 0"),
    ],
)
def test_an_option_out_of_range_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        build_loss(name, **options)
    assert "\n" not in str(error.value)


def test_defaults_are_the_reference_s():
    defaults = {
        option: parameter.default
        for name in ("arcmargin", "quadruplet", "npairs")
        for option, parameter in loss_options(name).items()
    }
    assert defaults["arc_scale"] == 80.0
    assert defaults["arc_margin"] == 0.15
    assert defaults["arc_easy_margin"] is False
    assert defaults["margin"] == 0.1
    assert defaults["samples_each_class"] == 2
    assert defaults["npairs_reg_lambda"] == 0.01


def test_initial_weights_are_the_reference_s():
    softmax = build_loss("softmax", class_dim=200, embedding_size=64)
    assert softmax.weight.shape == (200, 64) and softmax.bias.eq(0).all()
    assert softmax.weight.abs().max() <= 1 / 8 and softmax.weight.std() > 0.9 / 8 / math.sqrt(3)
    arcmargin = build_loss("arcmargin", class_dim=200, embedding_size=64)
    assert list(dict(arcmargin.named_parameters())) == ["weight"]
    assert arcmargin.weight.abs().max() <= math.sqrt(6 / 264)


def test_extremes_give_every_tied_entry_the_full_gradient():
    values = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], requires_grad=True)
    (tied_max(values, 1).sum() + 10 * tied_min(values, 1).sum()).backward()
    assert values.grad.tolist() == [[10.0, 1.0, 1.0], [1.0, 10.0, 0.0]]


@pytest.mark.parametrize(("floor", "cost"), [(PADDLE_LOGIT_FLOOR, 64.0), (-math.inf, 100.0)])
def test_a_floor_limits_the_cost_but_not_the_gradient(floor, cost):
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]), floor=floor)
    loss.backward()
    assert loss.item() == pytest.approx(cost)
    assert logits.grad.tolist() == [[1.0, -1.0]]


def test_squared_distances_are_symmetric_to_the_bit():
    rows = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    distances = squared_distances(rows)
    assert torch.equal(distances, distances.T)
    torch.testing.assert_close(distances, torch.cdist(rows, rows).square(), rtol=1e-4, atol=1e-2)


SPLITTABLE = [name for name, loss in ELEM_LOSSES.items() if issubclass(loss, SplittableLoss)]


@pytest.mark.parametrize("name", SPLITTABLE)
def test_logits_of_some_classes_are_columns_of_the_whole(name):
    whole, (embeddings, labels) = criterion_of(name), batch_of(name)
    columns = []
    for first, end in ((0, 3), (3, CLASS_DIM)):
        part = criterion_of(name, end - first)
        part.load_state_dict({key: rows[first:end] for key, rows in whole.state_dict().items()})
        here = torch.where((labels >= first) & (labels < end), labels - first, -1)
        columns.append(part.logits(embeddings, here))
    torch.testing.assert_close(torch.cat(columns, 1), whole(embeddings, labels)[1])


def test_the_reference_s_losses_can_be_split_by_classes():
    assert {"softmax", "arcmargin"} <= set(SPLITTABLE)
