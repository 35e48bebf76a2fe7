"""Losses that look at labels: every option, any order of labels, odd batches, the peer library."""

import pytest
import torch
from naive_pairs import FORMULAS, hyperbolic_distance, in_ball

from metric_learning.losses import PAIR_LOSSES, build_loss, layout_of

pml = pytest.importorskip("pytorch_metric_learning.losses")
distances = pytest.importorskip("pytorch_metric_learning.distances")
miners = pytest.importorskip("pytorch_metric_learning.miners")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")

LABEL_LOSSES = [name for name in PAIR_LOSSES if layout_of(name) == "labels"]
# Beside the defaults, which test_losses.py covers.
VARIANTS = [
    ("contrastive", {"positive_margin": 0.5, "negative_margin": 1.3}),
    ("batch_triplet", {"mining": "all"}),
    ("batch_triplet", {"mining": "semihard", "margin": 0.4}),
    ("batch_triplet", {"mining": "all", "soft_margin": True}),
    ("batch_triplet", {"mining": "hard", "soft_margin": True}),
    ("batch_triplet", {"mining": "semihard", "soft_margin": True}),
    ("chen_quadruplet", {"margin": 0.8, "weak_margin": 0.6}),
    ("multi_similarity", {"ms_alpha": 3.0, "ms_beta": 9.0, "ms_lambda": 0.1, "ms_epsilon": 0.0}),
    ("multi_similarity", {"ms_epsilon": 2.0}),
    ("lifted_structure", {"lifted_margin": 0.2}),
    ("supcon", {"temperature": 0.5}),
    ("circle", {"circle_margin": 0.25, "circle_scale": 20.0}),
    ("smooth_ap", {"rank_temperature": 0.1}),
    ("recall_surrogate", {"recall_ks": (1, 3, 50), "recall_temperature": 0.5}),
    ("roadmap", {"rank_temperature": 0.1, "rank_margin": 0.4, "rank_slope": 3.0}),
    ("roadmap", {"rank_offset": 5.0, "calibration": 0.3, "calibration_positive": 0.4}),
    ("roadmap", {"rank_margin": 0.0, "calibration_negative": 0.2}),
    ("hyperbolic", {"hyp_c": 1.0, "hyp_clip": 1.5, "temperature": 0.5}),
    ("hyperbolic", {"hyp_c": 0.01, "hyp_clip": 9.0}),
    ("contextual", {"contextual_k": 6, "contextual_slack": 0.3, "mean_cosine": 0.1}),
    ("contextual", {"contextual_weight": 0.2, "mean_weight": 0.7, "calibration_negative": 0.1}),
    ("contextual", {"contextual_k": 30, "calibration_positive": 0.2}),
]
# They have a cost of all positive or all negative pairs, whatever else there is in a batch.
OF_ALL_PAIRS = ("contrastive", "xbm_contrastive", "roadmap", "contextual")
# Labels of 12 images: classes of one size, of several sizes, and of single images too.
BATCHES = {
    "even": [3, 0, 1, 2, 2, 0, 3, 1, 0, 1, 2, 3],
    "uneven": [9, 4, 9, 9, 4, 0, 9, 0, 9, 9, 4, 9],
    "single": [0, 1, 2, 3, 3, 4, 5, 0, 6, 0, 0, 7],
}


def batch(labels, seed=0, size=6):
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), size, generator=rng, dtype=torch.float64)
    return embeddings.requires_grad_(), torch.tensor(labels)


def gradient(loss, embeddings):
    return torch.autograd.grad(loss, embeddings)[0]


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in LABEL_LOSSES), *VARIANTS], ids=str
)
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_value_is_the_formula_s_for_any_labels(name, options, labels):
    criterion = build_loss(name, **options)
    for seed in range(3):
        embeddings, truth = batch(labels, seed)
        expected = FORMULAS[name](criterion, embeddings.detach().numpy(), labels)
        assert criterion(embeddings, truth).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


ALL_OPTIONS = [
    *((name, {}) for name in LABEL_LOSSES),
    *(("batch_triplet", {"mining": mining}) for mining in ("all", "semihard", "distance")),
    ("batch_triplet", {"soft_margin": True}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in ALL_OPTIONS if case[1].get("mining") != "distance"],  # which draws
    ids=str,
)
def test_order_does_not_matter(name, options):
    criterion = build_loss(name, **options)
    embeddings, labels = batch(BATCHES["uneven"])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        criterion(embeddings[order], labels[order]), criterion(embeddings, labels)
    )


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS, ids=str)
@pytest.mark.parametrize("labels", [[3] * 4, [3, 2, 1, 0], [3]], ids=["one class", "single", "one"])
def test_nothing_to_compare_costs_nothing(name, options, labels):
    """Without negatives, or without positives; a contrastive loss still has the others."""
    embeddings, labels = batch(labels)
    loss = build_loss(name, **options)(embeddings, labels)
    slope = gradient(loss, embeddings)
    if name in OF_ALL_PAIRS and len(labels) > 1:
        assert slope.isfinite().all() and (loss > 0 or len(labels.unique()) > 1)
    else:
        assert loss.item() == 0.0 and slope.eq(0).all()


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_repeated_and_equal_images_stay_finite(name, options, dtype):
    """A class with too few images repeats them; two images of one class or of two may be equal."""
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for chosen in ([0, 0, 1, 1, 0, 2], [0, 0, 0, 0, 0, 0]):
        embeddings = rows[chosen].requires_grad_()
        loss = build_loss(name, **options)(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]))
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert gradient(loss, embeddings).isfinite().all()


SQUARED = distances.LpDistance(power=2)
PEERS = {
    "batch_triplet all": (
        {"mining": "all", "margin": 0.3},
        pml.TripletMarginLoss(margin=0.3, distance=SQUARED),
        None,
    ),
    "batch_triplet hard": (
        {"margin": 0.3},
        pml.TripletMarginLoss(margin=0.3, distance=SQUARED, reducer=reducers.MeanReducer()),
        miners.BatchHardMiner(distance=SQUARED),
    ),
    "batch_triplet soft": (
        {"soft_margin": True},
        pml.TripletMarginLoss(margin=0, smooth_loss=True, reducer=reducers.MeanReducer()),
        miners.BatchHardMiner(),
    ),
    "multi_similarity": (
        {},
        pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "lifted_structure": (
        {"lifted_margin": 0.7},
        pml.GeneralizedLiftedStructureLoss(neg_margin=0.7, pos_margin=0),
        None,
    ),
    "supcon": ({"temperature": 0.2}, pml.SupConLoss(temperature=0.2), None),
    "circle": (
        {"circle_margin": 0.3, "circle_scale": 30.0},
        pml.CircleLoss(m=0.3, gamma=30),
        None,
    ),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("labels", ["even", "uneven"])
def test_value_and_gradient_are_those_of_pytorch_metric_learning(peer, labels):
    options, theirs, miner = PEERS[peer]
    ours = build_loss(peer.split()[0], **options)
    embeddings, labels = batch(BATCHES[labels])
    mined = None if miner is None else miner(embeddings, labels)
    loss, expected = ours(embeddings, labels), theirs(embeddings, labels, mined)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, embeddings), gradient(expected, embeddings))


def test_exact_ranks_give_the_average_precision_and_the_recall():
    """At low temperatures the smooth ranks are the ranks; s(q, .) falls with the angle."""
    angles = torch.tensor([0.0, 0.1, 0.3, 0.7], dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 1, 0, 0])
    # Ranks of the positives of the queries: 2, 3; (the second has none); 2, 3; 1, 3.
    precisions = [(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2]
    smooth_ap = build_loss("smooth_ap", rank_temperature=1e-4)
    assert smooth_ap(embeddings, labels).item() == pytest.approx(1 - sum(precisions) / 3)
    recall = build_loss(
        "recall_surrogate", recall_ks=(2,), rank_temperature=1e-4, recall_temperature=0.01
    )
    # A rank of exactly k counts a half.
    assert recall(embeddings, labels).item() == pytest.approx(1 - (1 / 4 + 1 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize("labels", ["even", "uneven"])
def test_calibration_is_the_contrastive_loss_of_pytorch_metric_learning(labels):
    embeddings, labels = batch(BATCHES[labels])
    ours = [build_loss("roadmap", calibration=w)(embeddings, labels) for w in (1.0, 0.0)]
    theirs = pml.ContrastiveLoss(
        pos_margin=0.9, neg_margin=0.6, distance=distances.CosineSimilarity()
    )(embeddings, labels)
    torch.testing.assert_close(ours[0] - ours[1], theirs)
    torch.testing.assert_close(
        gradient(ours[0] - ours[1], embeddings), gradient(theirs, embeddings)
    )


def test_sup_ap_is_an_upper_bound_of_one_minus_the_average_precision():
    for seed in range(5):
        embeddings, labels = batch(BATCHES["uneven"], seed)
        exact = build_loss("smooth_ap", rank_temperature=1e-6)(embeddings, labels)
        assert build_loss("roadmap", calibration=0.0)(embeddings, labels) > exact


@pytest.mark.parametrize("seed", range(3))
def test_two_images_per_class_give_the_hyperbolic_loss_of_its_authors(seed):
    """Their loop: one view of each class against the other views and its own kind."""
    criterion = build_loss("hyperbolic")
    embeddings, labels = batch([0, 0, 1, 1, 2, 2, 3, 3], seed)
    points = [in_ball(criterion, row) for row in embeddings.detach().numpy()]
    views, total = (points[0::2], points[1::2]), 0.0
    for one, other in ((0, 1), (1, 0)):
        costs = []
        for i, point in enumerate(views[one]):
            scores = [-hyperbolic_distance(criterion, point, b) / 0.2 for b in views[other]]
            own = [
                -hyperbolic_distance(criterion, point, b) / 0.2
                for j, b in enumerate(views[one])
                if j != i
            ]
            logits = torch.tensor([*scores, *own])
            costs.append(float(logits.logsumexp(0) - scores[i]))
        total += sum(costs) / len(costs)
    assert criterion(embeddings, labels).item() == pytest.approx(total / 2)


def test_cosines_rank_long_embeddings_as_hyperbolic_distances_do():
    criterion = build_loss("hyperbolic", hyp_clip=2.3)
    rows = batch([0] * 9)[0].detach()
    rows = 2.31 * rows / rows.norm(dim=1, keepdim=True) * torch.arange(1.0, 10.0)[:, None]
    points = [in_ball(criterion, row) for row in rows.numpy()]
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    for i, point in enumerate(points):
        others = [j for j in range(9) if j != i]
        by_ball = sorted(others, key=lambda j: hyperbolic_distance(criterion, point, points[j]))
        assert by_ball == sorted(others, key=lambda j: -cosines[i, j].item())


class _Step(torch.autograd.Function):
    """1 where a number is at least another, which passes 10 times its gradient on to the first."""

    @staticmethod
    def forward(ctx, number, other):
        return (number >= other).to(number)

    @staticmethod
    def backward(ctx, slope):
        return 10 * slope, None


@pytest.mark.parametrize("labels", ["even", "uneven"])
def test_the_gradient_of_contextual_similarity_is_that_of_steps_of_slope_ten(labels):
    criterion = build_loss("contextual", contextual_weight=1.0, mean_weight=0.0)
    embeddings, labels = batch(BATCHES[labels])
    n, rows = len(labels), torch.nn.functional.normalize(embeddings)
    closeness = (2 * rows @ rows.T - 2).clamp(max=0)
    best = closeness.detach().sort(1, descending=True).values
    within, closest = (_Step.apply(closeness + 0.05, best[:, [size - 1]]) for size in (4, 2))
    total = 0.0
    for i in range(n):
        for j in (j for j in range(n) if j != i):
            both = 0.0
            for a, b in ((i, j), (j, i)):
                mutual = [closest[a, q] * closest[q, a] for q in range(n)]
                shares = [
                    (within[q] * within[b]).sum() / within[q].sum().detach()
                    + ((1 - within[q]) * (1 - within[b])).sum() / (1 - within[q]).sum().detach()
                    for q in range(n)
                ]
                weighted = [mutual[q] * within[q, b] * shares[q] / 2 for q in range(n)]
                both = both + sum(weighted) / sum(mutual) / 2
            aim = 1.0 if labels[i] == labels[j] else 0.0
            total = total + (both - aim) ** 2 / n**2
    loss = criterion(embeddings, labels)
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient(loss, embeddings), gradient(total, embeddings))
