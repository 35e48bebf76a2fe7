"""The formula of each stage-2 loss, written as loops over Python floats and NumPy rows."""

import math

import numpy as np


def d2(a, b):
    return float(((a - b) ** 2).sum())


def distance(a, b):
    return math.sqrt(d2(a, b))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def others(labels, i):
    """Numbers of the positives and of the negatives of image i."""
    same = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
    return same, [j for j in range(len(labels)) if labels[j] != labels[i]]


def anchors(labels):
    """Images that have a positive and a negative, with both."""
    found = [(i, *others(labels, i)) for i in range(len(labels))]
    return [anchor for anchor in found if anchor[1] and anchor[2]]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def triplet(criterion, rows, labels):
    triples = [unit(rows)[i : i + 3] for i in range(0, len(rows), 3)]
    return mean(max(0, d2(a, p) - d2(a, n) + criterion.margin) for a, p, n in triples)


def quadruplet(criterion, rows, labels):
    rows = unit(rows)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    same = [d2(rows[i], rows[j]) for i, j in pairs if labels[i] == labels[j]]
    other = [d2(rows[i], rows[j]) for i, j in pairs if labels[i] != labels[j]]
    return max(0, max(same) - min(other) + criterion.margin)


def npairs(criterion, rows, labels):
    costs = []
    for i in range(0, len(rows), 2):
        products = [float(rows[i] @ rows[j]) for j in range(1, len(rows), 2)]
        costs.append(math.log(sum(math.exp(p - products[i // 2]) for p in products)))
    norms = [float(row @ row) for row in rows]
    return mean(costs) + 0.5 * criterion.npairs_reg_lambda * mean(norms)


def eml(criterion, rows, labels):
    costs = []
    for i, same, other in anchors(labels):
        same = [d2(rows[i], rows[j]) for j in same]
        other = [d2(rows[i], rows[j]) for j in other]
        theta = mean(math.exp(d - max(same)) for d in same)
        theta *= mean(math.exp(min(other) - d) for d in other)
        gap, beta = max(same) - min(other), 1e5
        costs.append(math.log(1 + beta * theta * math.exp(gap)) / math.log(1 + beta))
    return mean(costs)


def tripletloss(criterion, rows, labels):
    triples = [unit(rows)[i : i + 3] for i in range(0, len(rows), 3)]
    return mean(max(0, distance(a, p) - distance(a, n) + criterion.margin) for a, p, n in triples)


def quadrupletloss(criterion, rows, labels):
    rows = unit(rows)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    same = [distance(rows[i], rows[j]) for i, j in pairs if labels[i] == labels[j]]
    other = [distance(rows[i], rows[j]) for i, j in pairs if labels[i] != labels[j]]
    return max(0, max(same) - min(other) + criterion.margin)


def emlloss(criterion, rows, labels):
    costs, beta = [], 1e5
    for i, same, other in anchors(labels):
        own_class = [0.0, *(d2(rows[i], rows[j]) for j in same)]
        other = [d2(rows[i], rows[j]) for j in other]
        theta = mean(math.exp(d - max(own_class)) for d in own_class)
        theta *= mean(math.exp(min(other) - d) for d in other)
        b = max(own_class) - min(other)
        f = [
            math.log(1 + beta * theta * math.exp(gap)) / math.log(1 + beta)
            for gap in (min(b, 20), 20)
        ]
        linear = (math.log(theta) + max(b, 20) + math.log(beta)) / math.log(1 + beta)
        costs.append(f[0] + linear - f[1])
    return mean(costs)


def siamese(criterion, rows, labels):
    rows = unit(rows)
    return mean(
        d2(rows[i], rows[i + 1])
        if labels[i] == labels[i + 1]
        else max(0, criterion.negative_margin - distance(rows[i], rows[i + 1])) ** 2
        for i in range(0, len(rows), 2)
    )


def contrastive(criterion, rows, labels):
    rows = unit(rows)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    same = [distance(rows[i], rows[j]) for i, j in pairs if labels[i] == labels[j]]
    other = [distance(rows[i], rows[j]) for i, j in pairs if labels[i] != labels[j]]
    too_far = mean(max(0, d - criterion.positive_margin) ** 2 for d in same)
    return too_far + mean(max(0, criterion.negative_margin - d) ** 2 for d in other)


def batch_triplet(criterion, rows, labels):
    rows, triples = unit(rows), []
    for i, same, other in anchors(labels):
        if criterion.mining == "all":
            triples += [(i, p, n) for p in same for n in other]
        elif criterion.mining == "hard":
            farthest = max(same, key=lambda j: d2(rows[i], rows[j]))
            triples.append((i, farthest, min(other, key=lambda j: d2(rows[i], rows[j]))))
        else:
            assert criterion.mining == "semihard"
            for p in same:
                beyond = [n for n in other if d2(rows[i], rows[n]) > d2(rows[i], rows[p])]
                if beyond:
                    triples.append((i, p, min(beyond, key=lambda j: d2(rows[i], rows[j]))))
    if criterion.soft_margin:
        gaps = [distance(rows[i], rows[p]) - distance(rows[i], rows[n]) for i, p, n in triples]
        return mean(math.log(1 + math.exp(gap)) for gap in gaps)
    gaps = [d2(rows[i], rows[p]) - d2(rows[i], rows[n]) for i, p, n in triples]
    costs = [max(0, gap + criterion.margin) for gap in gaps]
    return mean(cost for cost in costs if cost > 0 or criterion.mining != "all")


def chen_quadruplet(criterion, rows, labels):
    rows, indices = unit(rows), range(len(rows))
    triples, quadruples = [], []
    for i, same, other in ((i, *others(labels, i)) for i in indices):
        for j in same:
            close = d2(rows[i], rows[j])
            triples += [close - d2(rows[i], rows[k]) + criterion.margin for k in other]
            quadruples += [
                close - d2(rows[k], rows[m]) + criterion.weak_margin
                for k in other
                for m in other
                if labels[k] != labels[m]
            ]
    return mean(max(0, gap) for gap in triples) + mean(max(0, gap) for gap in quadruples)


def multi_similarity(criterion, rows, labels):
    rows, costs = unit(rows), []
    alpha, beta, base = criterion.ms_alpha, criterion.ms_beta, criterion.ms_lambda
    for i, same, other in anchors(labels):
        same, other = ([float(rows[i] @ rows[j]) for j in group] for group in (same, other))
        hard = [s for s in same if s < max(other) + criterion.ms_epsilon]
        close = [s for s in other if s > min(same) - criterion.ms_epsilon]
        costs.append(
            math.log(1 + sum(math.exp(-alpha * (s - base)) for s in hard)) / alpha
            + math.log(1 + sum(math.exp(beta * (s - base)) for s in close)) / beta
        )
    return mean(costs)


def lifted_structure(criterion, rows, labels):
    rows, costs = unit(rows), []
    for i, same, other in anchors(labels):
        far = math.log(sum(math.exp(distance(rows[i], rows[j])) for j in same))
        near = sum(math.exp(criterion.lifted_margin - distance(rows[i], rows[j])) for j in other)
        costs.append(max(0, far + math.log(near)))
    return mean(costs)


def supcon(criterion, rows, labels):
    rows, costs = unit(rows), []
    for i, same, other in anchors(labels):
        scores = {j: float(rows[i] @ rows[j]) / criterion.temperature for j in same + other}
        total = math.log(sum(math.exp(score) for score in scores.values()))
        costs.append(mean(total - scores[j] for j in same))
    return mean(costs)


def circle(criterion, rows, labels):
    rows, costs = unit(rows), []
    margin, scale = criterion.circle_margin, criterion.circle_scale
    for i, same, other in anchors(labels):
        same, other = ([float(rows[i] @ rows[j]) for j in group] for group in (same, other))
        lacking = sum(math.exp(-scale * max(0, 1 + margin - s) * (s - (1 - margin))) for s in same)
        excess = sum(math.exp(scale * max(0, s + margin) * (s - margin)) for s in other)
        costs.append(math.log(1 + lacking * excess))
    return mean(costs)


def smooth_rank(scores, j, among, temperature):
    return 1 + sum(sigmoid((scores[m] - scores[j]) / temperature) for m in among if m != j)


def smooth_ap(criterion, rows, labels):
    rows, costs = unit(rows), []
    for i, same, other in anchors(labels):
        scores, t = rows @ rows[i], criterion.rank_temperature
        precisions = [
            smooth_rank(scores, j, same, t) / smooth_rank(scores, j, same + other, t) for j in same
        ]
        costs.append(1 - mean(precisions))
    return mean(costs)


def recall_surrogate(criterion, rows, labels):
    rows, costs = unit(rows), []
    for i, same, other in anchors(labels):
        scores = rows @ rows[i]
        ranks = [smooth_rank(scores, j, same + other, criterion.rank_temperature) for j in same]
        for k in (min(k, len(rows)) for k in criterion.recall_ks):
            found = sum(sigmoid((k - rank) / criterion.recall_temperature) for rank in ranks)
            costs.append(1 - min(k, found) / min(k, len(same)))
    return mean(costs)


def roadmap(criterion, rows, labels):
    rows, costs = unit(rows), []

    def step(lead):
        if lead > criterion.rank_margin:
            return criterion.rank_slope * lead + criterion.rank_offset
        return sigmoid(lead / criterion.rank_temperature) + (0.5 if lead > 0 else 0)

    for i, same, other in anchors(labels):
        scores, precisions = rows @ rows[i], []
        for p in same:
            before = 1 + sum(scores[j] >= scores[p] for j in same if j != p)
            precisions.append(before / (before + sum(step(scores[j] - scores[p]) for j in other)))
        costs.append(1 - mean(precisions))

    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    cosines = {pair: float(rows[pair[0]] @ rows[pair[1]]) for pair in pairs}
    lacking = [
        criterion.calibration_positive - cosines[i, j] for i, j in pairs if labels[i] == labels[j]
    ]
    excess = [
        cosines[i, j] - criterion.calibration_negative for i, j in pairs if labels[i] != labels[j]
    ]
    active = [[value for value in values if value > 0] for values in (lacking, excess)]
    return mean(costs) + criterion.calibration * (mean(active[0]) + mean(active[1]))


def xbm_contrastive(criterion, rows, labels):
    rows, total = unit(rows), 0.0
    for i in range(len(rows)):
        same, other = others(labels, i)
        total += sum(1 - float(rows[i] @ rows[j]) for j in same)
        total += sum(s for s in (float(rows[i] @ rows[j]) for j in other) if s > 0.5)
    assert criterion.negative_cosine == 0.5
    return total / len(rows)


def in_ball(criterion, row):
    """The authors' ToPoincare: clipped, then the exponential map at 0."""
    root, row = math.sqrt(criterion.hyp_c), np.asarray(row, np.float64)
    row = row * min(1, criterion.hyp_clip / (np.linalg.norm(row) + 1e-5))
    length = np.linalg.norm(row)
    return math.tanh(root * length) * row / (root * length)


def hyperbolic_distance(criterion, u, v):
    """The authors' dist: by Moebius addition of -u and v."""
    c, u = criterion.hyp_c, -u
    uv, u2, v2 = float(u @ v), float(u @ u), float(v @ v)
    total = ((1 + 2 * c * uv + c * v2) * u + (1 - c * u2) * v) / (1 + 2 * c * uv + c * c * u2 * v2)
    return 2 / math.sqrt(c) * math.atanh(math.sqrt(c) * np.linalg.norm(total))


def hyperbolic(criterion, rows, labels):
    rows, costs = [in_ball(criterion, row) for row in rows], []
    for i, same, other in anchors(labels):
        scores = {
            j: -hyperbolic_distance(criterion, rows[i], rows[j]) / criterion.temperature
            for j in same + other
        }
        total = math.log(sum(math.exp(score) for score in scores.values()))
        costs.append(mean(total - scores[j] for j in same))
    return mean(costs)


def contextual(criterion, rows, labels):
    rows, n = unit(rows), len(rows)
    k = min(criterion.contextual_k, n)
    distances = [[d2(a, b) for b in rows] for a in rows]

    def near(i, size):
        limit = sorted(distances[i])[size - 1] + criterion.contextual_slack
        return {j for j in range(n) if distances[i][j] <= limit}

    sets, halves = ([near(i, size) for i in range(n)] for size in (k, max(1, k // 2)))
    beyond = [set(range(n)) - own for own in sets]

    def share(q, j):
        if j not in sets[q]:
            return 0.0
        inside = len(sets[q] & sets[j]) / len(sets[q])
        return (inside + len(beyond[q] & beyond[j]) / max(1, len(beyond[q]))) / 2

    def overlap(i, j):
        return mean(share(q, j) for q in halves[i] if i in halves[q])

    context, lacking, excess = 0.0, [], []
    for i in range(n):
        for j in (j for j in range(n) if j != i):
            both, cosine = (overlap(i, j) + overlap(j, i)) / 2, float(rows[i] @ rows[j])
            if labels[i] == labels[j]:
                context += (1 - both) ** 2
                lacking.append(criterion.calibration_positive - cosine)
            else:
                context += both**2
                excess.append(cosine - criterion.calibration_negative)
    hinges = mean(gap for gap in lacking if gap > 0) + mean(gap for gap in excess if gap > 0)
    spread = (mean(float(a @ b) for a in rows for b in rows) - criterion.mean_cosine) ** 2
    weights = criterion.contextual_weight, criterion.mean_weight
    return (
        weights[0] * context / n**2 + weights[1] * spread + (1 - weights[0] - weights[1]) * hinges
    )


FORMULAS = {
    "triplet": triplet,
    "quadruplet": quadruplet,
    "eml": eml,
    "npairs": npairs,
    "siamese": siamese,
    "contrastive": contrastive,
    "batch_triplet": batch_triplet,
    "chen_quadruplet": chen_quadruplet,
    "multi_similarity": multi_similarity,
    "lifted_structure": lifted_structure,
    "supcon": supcon,
    "circle": circle,
    "smooth_ap": smooth_ap,
    "recall_surrogate": recall_surrogate,
    "roadmap": roadmap,
    "xbm_contrastive": xbm_contrastive,
    "hyperbolic": hyperbolic,
    "contextual": contextual,
    "tripletloss": tripletloss,
    "quadrupletloss": quadrupletloss,
    "emlloss": emlloss,
}
