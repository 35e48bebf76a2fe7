"""Stage-1 losses: every option, the peer library, and the state that some of them keep."""

import math

import pytest
import torch
from naive_classes import CLASS_FORMULAS

from metric_learning.losses import ELEM_LOSSES, build_loss
from metric_learning.losses.classes import fixed_directions

pml = pytest.importorskip("pytorch_metric_learning.losses")

CLASS_DIM, SIZE = 7, 12
# Beside the defaults, which test_losses.py covers; scales that keep costs below their limit.
VARIANTS = [
    ("softmax", {"label_smoothing": 0.2}),
    ("cosface", {"scale": 10.0, "cos_margin": 0.1}),
    ("arcmargin", {"arc_scale": 10.0, "arc_margin": 1.8}),
    ("sphereface", {"anneal_start": 0.0, "anneal_end": 0.0}),
    ("sphereface", {"anneal_start": 0.0, "anneal_end": 0.0, "sphere_margin": 3}),
    ("sphereface", {"anneal_start": 2.0, "anneal_end": 3.0}),
    ("sphereface", {"anneal_speed": 3.0}),
    ("combined", {"scale": 10.0, "angle_factor": 0.9, "arc_margin": 0.4, "cos_margin": 0.15}),
    ("normsoftmax", {"temperature": 0.3}),
    ("adacos", {"dynamic_scale": False}),
    ("subcenter", {"scale": 10.0, "arc_margin": 1.5, "sub_centers": 4}),
    ("curricularface", {"scale": 10.0, "arc_margin": 1.2}),
    ("adaface", {"scale": 10.0, "ada_margin": 0.9, "ada_concentration": 5.0}),
    ("adaface", {"scale": 10.0, "ada_norm_limit": 2.0, "ada_norm_mean": 3.0, "ada_norm_std": 1.0}),
    ("elastic_arc", {"scale": 10.0, "arc_margin": 1.6, "elastic_std": 3.0, "elastic_plus": True}),
    ("elastic_cos", {"scale": 10.0, "cos_margin": 0.2, "elastic_std": 3.0}),
    ("proxy_nca", {"nca_temperature": 0.5}),
    ("proxy_anchor", {"scale": 5.0, "anchor_margin": 0.3}),
    ("soft_triple", {"soft_centers": 1, "cos_margin": 0.2}),
    ("soft_triple", {"soft_centers": 3, "soft_temperature": 0.5, "soft_regularizer": 4.0}),
    ("vpl", {"scale": 10.0, "arc_margin": 0.2}),
    ("magface", {"scale": 10.0, "mag_low": 2.0, "mag_high": 4.0}),
    ("magface", {"mag_low": 3.5, "mag_high": 4.0, "mag_margin_low": 0.1, "mag_margin_high": 0.9}),
    ("magface", {"scale": 10.0, "mag_low": 1.0, "mag_weight": 2.0}),
    ("center", {"center_weight": 0.7}),
    ("center", {"center_weight": 0.1, "label_smoothing": 0.2}),
]
STATEFUL = {
    "sphereface": ["num_batches"],
    "adacos": ["running_scale"],
    "curricularface": ["running_cosine"],
    "adaface": ["running_mean", "running_std"],
    "vpl": ["memory", "num_batches", "written"],
    "center": ["centers"],
}


def criterion_of(name, **options):
    torch.manual_seed(3)
    return build_loss(name, class_dim=CLASS_DIM, embedding_size=SIZE, **options)


def batch(seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(6, SIZE, generator=rng, dtype=torch.float64).to(dtype)
    return embeddings.requires_grad_(), torch.tensor([0, 3, 6, 3, 1, 0])


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_value_is_the_formula_s_with_every_option(name, options, seed):
    criterion = criterion_of(name, **options).double().eval()
    embeddings, labels = batch(seed)
    expected = CLASS_FORMULAS[name](criterion, embeddings.detach().numpy(), labels.tolist())
    assert criterion(embeddings, labels)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_gradient_is_the_derivative_with_every_option(name, options):
    criterion = criterion_of(name, **options).double().eval()
    embeddings, labels = batch()

    def value(rows, _):
        if name == "adaface":  # whose margin depends on the norms, but has no gradient by design
            rows = torch.nn.functional.normalize(rows) * 3.0
        return criterion(rows, labels)[0]

    assert torch.autograd.gradcheck(value, (embeddings, criterion.weight))


# Options that make both the same loss: arc margins are in degrees there, SphereFace never anneals,
# and SoftTriple does not draw its centres together.
PEERS = {
    "arcmargin": (
        {"arc_scale": 16.0, "arc_margin": 0.5},
        pml.ArcFaceLoss(CLASS_DIM, SIZE, margin=math.degrees(0.5), scale=16),
        "W",
    ),
    "cosface": ({"scale": 16.0}, pml.CosFaceLoss(CLASS_DIM, SIZE, margin=0.35, scale=16), "W"),
    "sphereface": (
        {"anneal_start": 0.0, "anneal_end": 0.0},
        pml.SphereFaceLoss(CLASS_DIM, SIZE, margin=4, scale=1),
        "W",
    ),
    "normsoftmax": ({}, pml.NormalizedSoftmaxLoss(CLASS_DIM, SIZE, temperature=0.05), "W"),
    "subcenter": (
        {"scale": 16.0},
        pml.SubCenterArcFaceLoss(
            num_classes=CLASS_DIM,
            embedding_size=SIZE,
            margin=math.degrees(0.5),
            scale=16,
            sub_centers=3,
        ),
        "W",
    ),
    "proxy_nca": ({}, pml.ProxyNCALoss(CLASS_DIM, SIZE, softmax_scale=9), "proxies"),
    "proxy_anchor": ({}, pml.ProxyAnchorLoss(CLASS_DIM, SIZE, margin=0.1, alpha=32), "proxies"),
    "soft_triple": (
        {"soft_regularizer": 0.0},
        pml.SoftTripleLoss(CLASS_DIM, SIZE, centers_per_class=10, la=20, gamma=0.1, margin=0.01),
        "fc",
    ),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_pytorch_metric_learning(name, seed):
    options, theirs, weight = PEERS[name]
    ours = criterion_of(name, **options).double().eval()
    columns = ours.weight.detach().flatten(0, -2)
    peer = getattr(theirs, weight)
    peer.data = columns.clone() if peer.shape == columns.shape else columns.T.clone()
    embeddings, labels = batch(seed)
    loss, expected = ours(embeddings, labels)[0], theirs(embeddings, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    [slope], [slope_there] = (torch.autograd.grad(value, embeddings) for value in (loss, expected))
    torch.testing.assert_close(slope, slope_there, rtol=1e-4, atol=1e-5)


def test_label_smoothing_of_zero_is_none():
    embeddings, labels = batch(dtype=torch.float32)
    plain, smoothed = criterion_of("softmax"), criterion_of("softmax", label_smoothing=0.0)
    assert torch.equal(plain(embeddings, labels)[0], smoothed(embeddings, labels)[0])


def test_the_class_layer_drops_values_out_in_training_alone():
    plain, dropped = criterion_of("softmax"), criterion_of("softmax", class_dropout=0.5)
    embeddings, labels = batch(dtype=torch.float32)
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(embeddings, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped(embeddings, labels)[1], plain(expected, labels)[1])
    assert torch.equal(dropped.eval()(embeddings, labels)[0], plain(embeddings, labels)[0])
    assert torch.equal(dropped.class_scores(embeddings), plain.class_scores(embeddings))
    assert dropped.state_dict().keys() == plain.state_dict().keys()


def test_a_class_layer_of_zeros_finds_all_classes_alike():
    criterion = criterion_of("softmax", init_class_layer="zero")
    assert not criterion.weight.any()
    embeddings = torch.randn(4, criterion.weight.shape[1], requires_grad=True)
    loss, _ = criterion(embeddings, torch.arange(4) % 2)
    assert float(loss.detach()) == pytest.approx(math.log(len(criterion.weight)))
    loss.backward()
    assert criterion.weight.grad.any() and not embeddings.grad.any()
    with pytest.raises(ValueError, match="expected init_class_layer of uniform, zero, found one"):
        criterion_of("softmax", init_class_layer="one")


def test_smoothed_costs_have_no_limit():
    """Every class would meet it: 35.4 was logged where the formula says 69.8."""
    criterion = criterion_of("softmax", label_smoothing=0.3).double()
    embeddings, labels = batch()
    rows = 150 * embeddings.detach()
    expected = CLASS_FORMULAS["softmax"](criterion, rows.numpy(), labels.tolist())
    assert criterion(rows, labels)[0].item() == pytest.approx(expected)
    assert (criterion(rows, labels)[1].amax(1) - criterion(rows, labels)[1].amin(1)).max() > 64


@pytest.mark.parametrize(
    "name", [n for n in ELEM_LOSSES if n not in ("softmax", "proxy_anchor", "center")]
)
def test_only_the_reference_s_losses_limit_a_cost(name):
    beside = {"soft_triple": {"soft_regularizer": 0.0}, "magface": {"mag_weight": 0.0}}
    options = beside.get(name, {})
    criterion, labels = criterion_of(name, **options).double().eval(), batch()[1]
    criterion.scale = 500.0
    if name == "adacos":
        criterion.running_scale.fill_(500.0)
    rows = -1e3 * criterion.weight.detach().flatten(0, -2)[:6]  # of which sphereface takes the norm
    loss, logits = criterion(rows, labels)
    assert (logits.amax(1) - logits[range(6), labels]).max() > 70
    unlimited = torch.nn.functional.cross_entropy(logits, labels).item()
    if name == "arcmargin":
        assert loss.item() < unlimited - 1
    else:
        assert loss.item() == pytest.approx(unlimited)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("softmax", {"label_smoothing": 1.0}, "label_smoothing of 0 to below 1, found 1"),
        ("softmax", {"class_dropout": 1.0}, "class_dropout of 0 to below 1, found 1"),
        ("adaface", {"ada_momentum": 1.5}, "ada_momentum of 0 to 1, found 1.5"),
        ("adaface", {"ada_norm_limit": 0.0}, "ada_norm_limit above 0"),
        ("normsoftmax", {"temperature": 0.0}, "temperature above 0, found 0"),
        ("proxy_nca", {"nca_temperature": 0.0}, "nca_temperature above 0"),
        ("proxy_anchor", {"scale": 0.0}, "scale above 0"),
        ("soft_triple", {"soft_temperature": 0.0}, "soft_temperature above 0"),
        ("vpl", {"vpl_lambda": 1.0}, "vpl_lambda of 0 to below 1, found 1"),
        (
            "magface",
            {"mag_low": 9.0, "mag_high": 9.0},
            "below mag_high, found 9 and 9",
        ),
        ("magface", {"mag_low": 0.0}, "mag_low above 0"),
        ("center", {"center_rate": 1.5}, "center_rate of 0 to 1, found 1.5"),
        ("center", {"class_dropout": 1.0}, "class_dropout of 0 to below 1, found 1"),
    ],
)
def test_an_option_out_of_range_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        criterion_of(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ELEM_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_odd_batches_stay_finite_in_training(name, dtype):
    """Zeros, equal images, the weights themselves and their opposites, and one image alone."""
    criterion = criterion_of(name)
    rows = criterion.weight.detach().flatten(0, -2)[:6].to(dtype)
    labels = batch()[1]
    for embeddings in (0 * rows.float(), torch.ones_like(rows), rows, -rows, rows[:1], 1e3 * rows):
        embeddings = embeddings.clone().requires_grad_()
        loss, logits = criterion(embeddings, labels[: len(embeddings)])
        loss.backward()
        assert loss.dtype == logits.dtype == torch.float32
        assert logits.shape == (len(embeddings), CLASS_DIM) and loss.isfinite()
        assert embeddings.grad.isfinite().all() and criterion.weight.grad.isfinite().all()
        assert criterion.class_scores(embeddings).shape == logits.shape
    assert all(buffer.isfinite().all() for buffer in criterion.buffers())


@pytest.mark.parametrize("name", ELEM_LOSSES)
def test_state_changes_in_training_alone_and_is_saved(name):
    criterion, (embeddings, labels) = criterion_of(name), batch(dtype=torch.float32)
    buffers = dict(criterion.named_buffers())
    assert sorted(buffers) == sorted(STATEFUL.get(name, []))
    start = {key: value.clone() for key, value in buffers.items()}
    criterion.eval()(embeddings, labels)
    assert all(torch.equal(buffers[key], value) for key, value in start.items())
    criterion.train()
    for _ in range(3):
        criterion(embeddings, labels)
    assert not any(torch.equal(buffers[key], value) for key, value in start.items())
    resumed = criterion_of(name)
    resumed.load_state_dict(criterion.state_dict())
    losses = []
    for loss in (criterion, resumed):
        torch.manual_seed(0)
        losses.append([loss(embeddings, labels)[0] for _ in range(2)])
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))


@pytest.mark.parametrize("name", STATEFUL)
def test_what_is_not_finite_does_not_enter_a_state(name):
    criterion, (embeddings, labels) = criterion_of(name), batch(dtype=torch.float32)
    criterion(torch.full_like(embeddings, torch.nan), labels)
    assert all(buffer.isfinite().all() for buffer in criterion.buffers())
    assert criterion(embeddings, labels)[0].isfinite()


def test_adacos_scale_follows_the_angles():
    criterion, (embeddings, labels) = criterion_of("adacos").double(), batch()
    first = math.sqrt(2) * math.log(CLASS_DIM - 1)
    assert float(criterion.running_scale) == pytest.approx(first)
    unit = torch.nn.functional.normalize
    cosines = (unit(embeddings) @ unit(criterion.weight).T).tolist()
    others = [
        sum(math.exp(first * row[j]) for j in range(CLASS_DIM) if j != label)
        for row, label in zip(cosines, labels.tolist(), strict=True)
    ]
    angles = sorted(math.acos(row[y]) for row, y in zip(cosines, labels.tolist(), strict=True))
    median = min(math.pi / 4, angles[2])  # the lower one of two, as torch has it
    expected = math.log(sum(others) / len(others)) / math.cos(median)
    _, logits = criterion(embeddings, labels)
    assert float(criterion.running_scale) == pytest.approx(expected)
    torch.testing.assert_close(logits, criterion.class_scores(embeddings))


def test_sphereface_anneals_as_its_authors_do():
    """The first batch is number 1; evaluation has the weight of the last batch."""
    criterion, (embeddings, labels) = criterion_of("sphereface").double(), batch()
    for number in (0, 1, 5000):
        criterion.num_batches.fill_(number)
        loss = criterion.train()(embeddings, labels)[0]
        assert int(criterion.num_batches) == number + 1
        expected = CLASS_FORMULAS["sphereface"](
            criterion, embeddings.detach().numpy(), labels.tolist()
        )
        assert loss.item() == pytest.approx(expected)
        assert criterion.eval()(embeddings, labels)[0].item() == loss.item()


def test_curricularface_follows_the_target_cosines():
    criterion, (embeddings, labels) = criterion_of("curricularface"), batch(dtype=torch.float32)
    expected = 0.0
    for _ in range(3):
        cosines = criterion.cosines(embeddings).detach()
        expected = 0.99 * expected + 0.01 * float(cosines[range(6), labels].mean())
        criterion(embeddings, labels)
        assert float(criterion.running_cosine) == pytest.approx(expected)


def test_adaface_follows_the_norms():
    criterion, (embeddings, labels) = criterion_of("adaface"), batch(dtype=torch.float32)
    norms = embeddings.detach().norm(dim=1)
    criterion(embeddings, labels)
    assert float(criterion.running_mean) == pytest.approx(0.99 * 20 + 0.01 * float(norms.mean()))
    assert float(criterion.running_std) == pytest.approx(0.99 * 100 + 0.01 * float(norms.std()))


def test_adaface_follows_the_batch_where_it_is_told_to():
    criterion = criterion_of("adaface", ada_momentum=1.0, ada_norm_limit=1e4)
    embeddings, labels = batch(dtype=torch.float32)
    norms = (200 * embeddings.detach()).norm(dim=1)
    criterion(200 * embeddings, labels)
    assert float(criterion.running_mean) == pytest.approx(float(norms.mean()))
    assert float(criterion.running_std) == pytest.approx(float(norms.std()))


@pytest.mark.parametrize(
    ("name", "is_plus", "std"),
    [
        *(("elastic_arc", False, 0.05), ("elastic_arc", True, 0.0175)),
        *(("elastic_cos", False, 0.05), ("elastic_cos", True, 0.02)),
    ],
)
def test_elastic_deviations_are_those_of_the_authors(name, is_plus, std):
    assert criterion_of(name, elastic_plus=is_plus).elastic_std == std
    assert criterion_of(name, elastic_plus=is_plus, elastic_std=0.0).elastic_std == 0


@pytest.mark.parametrize(("name", "mean"), [("elastic_arc", 0.5), ("elastic_cos", 0.35)])
def test_elastic_margins_are_drawn(name, mean):
    plain, plus = (
        criterion_of(name, elastic_std=0.05, elastic_plus=is_plus) for is_plus in (False, True)
    )
    targets = torch.linspace(-0.9, 0.9, 2000)[torch.randperm(2000)][:, None]
    torch.manual_seed(0)
    margins = plain._draw(targets)
    assert float(margins.mean()) == pytest.approx(mean, abs=0.005)
    assert float(margins.std()) == pytest.approx(0.05, rel=0.05)
    torch.manual_seed(0)
    ordered = plus._draw(targets)
    assert torch.equal(ordered.sort(0).values, margins.sort(0).values)
    assert ordered[targets.argsort(0)[:, 0]].diff(dim=0).le(0).all()  # the closest, the smallest


def test_vpl_mixes_the_newest_embedding_of_a_class_in():
    criterion = criterion_of("vpl", vpl_lambda=0.4, vpl_start=1, vpl_age=2, arc_margin=0.0)
    unit = torch.nn.functional.normalize
    (first, labels), (second, _) = batch(0, torch.float32), batch(1, torch.float32)
    last = {0: 5, 3: 3, 6: 2, 1: 4}  # rows of the classes of the batch
    weight = unit(criterion.weight.detach())
    mixed = weight.clone()
    for label, row in last.items():
        mixed[label] = 0.6 * weight[label] + 0.4 * unit(first.detach())[row]

    def logits_of(weights):
        return criterion.scale * unit(second) @ unit(weights).T

    torch.testing.assert_close(criterion(first, labels)[1], criterion.class_scores(first))
    state = {key: value.clone() for key, value in criterion.state_dict().items()}
    for number, expected in ((1, mixed), (2, mixed), (3, weight)):  # it is too old at last
        criterion.load_state_dict(state)
        criterion.num_batches.fill_(number)
        torch.testing.assert_close(criterion(second, labels)[1], logits_of(expected))
    assert criterion.written.tolist() == [3, 3, -1, 3, -1, -1, 3]


def test_magface_pulls_norms_up_and_a_longer_image_has_a_larger_margin():
    criterion = criterion_of("magface", mag_low=1.0, mag_high=9.0, scale=10.0).double()
    rows = torch.nn.functional.normalize(criterion.weight.detach()[:6])
    rows = (rows * torch.arange(2.0, 8.0)[:, None].double()).requires_grad_()
    loss, logits = criterion(rows, torch.arange(6))
    expected = [10 * math.cos(0.45 + (0.8 - 0.45) / 8 * (norm - 1)) for norm in range(2, 8)]
    assert logits[range(6), range(6)].tolist() == pytest.approx(expected, rel=2e-3)
    cost = loss - torch.nn.functional.cross_entropy(logits, torch.arange(6))
    slope = torch.autograd.grad(cost, rows)[0]
    assert (slope * rows).sum(1).lt(0).all()  # longer is cheaper
    outside = (100 * rows.detach()).requires_grad_()
    loss, logits = criterion(outside, torch.arange(6))
    slope = torch.autograd.grad(loss, outside)[0]
    assert (slope * outside).sum(1).abs().max() < 1e-9


def test_centers_move_as_in_the_paper():
    criterion, labels = criterion_of("center", center_rate=0.4).double(), batch()[1].tolist()
    centers = [[0.0] * SIZE for _ in range(CLASS_DIM)]
    for seed in range(3):
        rows, truth = batch(seed)
        expected = CLASS_FORMULAS["center"](criterion, rows.detach().numpy(), labels)
        assert criterion(rows, truth)[0].item() == pytest.approx(expected)
        for j in set(labels):
            own = [row for row, label in zip(rows.tolist(), labels, strict=True) if label == j]
            for k in range(SIZE):
                gap = sum(centers[j][k] - row[k] for row in own) / (1 + len(own))
                centers[j][k] -= 0.4 * gap
        torch.testing.assert_close(criterion.centers, torch.tensor(centers).double())
    assert criterion.centers[[2, 4, 5]].eq(0).all()
    assert [name for name, _ in criterion.named_parameters()] == [
        *("class_layer.weight", "class_layer.bias")
    ]


@pytest.mark.parametrize("name", ELEM_LOSSES)
@torch.no_grad()
def test_directions_are_fixed_for_a_while_and_give_the_same_bits(name):
    criterion, (embeddings, labels) = criterion_of(name).eval(), batch(dtype=torch.float32)
    expected, (loss, logits) = criterion.class_scores(embeddings), criterion(embeddings, labels)
    with fixed_directions(criterion):
        assert torch.equal(criterion.class_scores(embeddings), expected)
        found = criterion(embeddings, labels)
        assert torch.equal(found[0], loss) and torch.equal(found[1], logits)
        assert not any("directions" in key for key in criterion.state_dict())

    criterion.weight.mul_(torch.linspace(-1, 1, criterion.weight.shape[-1]))
    assert not torch.equal(criterion.class_scores(embeddings), expected)


def test_directions_are_those_of_the_moment():
    criterion, (embeddings, _) = criterion_of("arcmargin"), batch(dtype=torch.float32)
    before = criterion.class_scores(embeddings)
    with pytest.raises(KeyError), fixed_directions(criterion):
        with torch.no_grad():
            criterion.weight.neg_()
        assert torch.equal(criterion.class_scores(embeddings), before)  # normalised once
        raise KeyError
    assert torch.equal(criterion.class_scores(embeddings), -before)
