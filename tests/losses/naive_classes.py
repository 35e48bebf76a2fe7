"""The formula of each stage-1 loss in evaluation mode, written as loops over Python floats."""

import math

import numpy as np
from naive_pairs import d2, distance, mean, unit


def weight_of(criterion):
    return criterion.weight.detach().numpy().astype(np.float64)


def cost(scores, label):
    """Cross-entropy of one image: the scores of all classes and the number of its own."""
    return math.log(sum(math.exp(score - scores[label]) for score in scores))


def with_target(change):
    """Make the formula of a loss of scaled cosines from what becomes of the own class's angle."""

    def formula(criterion, rows, labels):
        costs = []
        for row, label in zip(unit(rows), labels, strict=True):
            scores = unit(weight_of(criterion)) @ row
            scores[label] = change(criterion, math.acos(scores[label]))
            costs.append(cost(criterion.scale * scores, label))
        return mean(costs)

    return formula


def enlarged(angle, margin):
    if angle < math.pi - margin:
        return math.cos(angle + margin)
    return math.cos(angle) - margin * math.sin(margin)


def softmax(criterion, rows, labels):
    bias, smoothing = criterion.bias.detach().numpy(), criterion.label_smoothing
    costs = []
    for row, label in zip(rows, labels, strict=True):
        scores = weight_of(criterion) @ row + bias
        every = mean(cost(scores, other) for other in range(len(scores)))
        costs.append((1 - smoothing) * cost(scores, label) + smoothing * every)
    return mean(costs)


def sphereface(criterion, rows, labels):
    m = criterion.sphere_margin
    plain = max(
        criterion.anneal_end,
        criterion.anneal_start / (1 + criterion.anneal_speed * int(criterion.num_batches)),
    )
    costs = []
    for row, label in zip(rows, labels, strict=True):
        scores = unit(weight_of(criterion)) @ unit(row[None])[0]
        angle = math.acos(scores[label])
        k = next(k for k in range(m) if angle <= (k + 1) * math.pi / m)
        psi = (-1) ** k * math.cos(m * angle) - 2 * k
        scores[label] = (plain * scores[label] + psi) / (1 + plain)
        costs.append(cost(np.linalg.norm(row) * scores, label))
    return mean(costs)


def adacos(criterion, rows, labels):
    scale = float(criterion.running_scale)
    return mean(
        cost(scale * (unit(weight_of(criterion)) @ row), label)
        for row, label in zip(unit(rows), labels, strict=True)
    )


def subcenter(criterion, rows, labels):
    costs = []
    for row, label in zip(unit(rows), labels, strict=True):
        scores = [max(float(center @ row) for center in unit(own)) for own in weight_of(criterion)]
        scores[label] = enlarged(math.acos(scores[label]), criterion.arc_margin)
        costs.append(cost([criterion.scale * score for score in scores], label))
    return mean(costs)


def curricularface(criterion, rows, labels):
    costs = []
    for row, label in zip(unit(rows), labels, strict=True):
        scores = unit(weight_of(criterion)) @ row
        angle = math.acos(scores[label])
        for j in range(len(scores)):
            if j != label and scores[j] > math.cos(angle + criterion.arc_margin):
                scores[j] *= float(criterion.running_cosine) + scores[j]
        scores[label] = enlarged(angle, criterion.arc_margin)
        costs.append(cost(criterion.scale * scores, label))
    return mean(costs)


def adaface(criterion, rows, labels):
    m, costs = criterion.ada_margin, []
    for row, label in zip(rows, labels, strict=True):
        norm = min(float(np.linalg.norm(row)), criterion.ada_norm_limit)
        quality = (norm - float(criterion.running_mean)) / (float(criterion.running_std) + 1e-3)
        quality = min(1, max(-1, criterion.ada_concentration * quality))
        scores = unit(weight_of(criterion)) @ unit(row[None])[0]
        angle = min(math.pi - 1e-3, max(1e-3, math.acos(scores[label]) - m * quality))
        scores[label] = math.cos(angle) - (m + m * quality)
        costs.append(cost(criterion.scale * scores, label))
    return mean(costs)


def proxy_nca(criterion, rows, labels):
    costs = []
    for row, label in zip(unit(rows), labels, strict=True):
        distances = [d2(row, proxy) for proxy in unit(weight_of(criterion))]
        costs.append(cost([-criterion.scale * distance for distance in distances], label))
    return mean(costs)


def proxy_anchor(criterion, rows, labels):
    a, m = criterion.scale, criterion.anchor_margin
    cosines = unit(rows) @ unit(weight_of(criterion)).T
    positive, negative = [], []
    for p in range(cosines.shape[1]):
        own = [cosines[i, p] for i in range(len(rows)) if labels[i] == p]
        others = [cosines[i, p] for i in range(len(rows)) if labels[i] != p]
        if own:
            positive.append(math.log(1 + sum(math.exp(-a * (c - m)) for c in own)))
        negative.append(math.log(1 + sum(math.exp(a * (c + m)) for c in others)))
    return mean(positive) + mean(negative)


def soft_triple(criterion, rows, labels):
    classes = [unit(own) for own in weight_of(criterion)]
    costs = []
    for row, label in zip(unit(rows), labels, strict=True):
        scores = []
        for centers in classes:
            weights = np.exp(centers @ row / criterion.soft_temperature)
            scores.append(float(weights @ (centers @ row) / weights.sum()))
        scores[label] -= criterion.cos_margin
        costs.append(cost([criterion.scale * score for score in scores], label))
    gaps, count = 0.0, len(classes[0])
    for centers in classes:
        gaps += sum(distance(centers[k], centers[i]) for i in range(count) for k in range(i))
    spread = gaps / (len(classes) * count * (count - 1)) if count > 1 else 0.0
    return mean(costs) + criterion.soft_regularizer * spread


def magface(criterion, rows, labels):
    low, high = criterion.mag_low, criterion.mag_high
    margins = criterion.mag_margin_low, criterion.mag_margin_high
    costs = []
    for row, label in zip(rows, labels, strict=True):
        norm = min(max(float(np.linalg.norm(row)), low), high)
        margin = margins[0] + (margins[1] - margins[0]) / (high - low) * (norm - low)
        scores = unit(weight_of(criterion)) @ unit(row[None])[0]
        if scores[label] > 0:
            scores[label] = math.cos(math.acos(scores[label]) + margin)
        short = 1 / high**2 * norm + 1 / norm
        costs.append(cost(criterion.scale * scores, label) + criterion.mag_weight * short)
    return mean(costs)


def center(criterion, rows, labels):
    centers = criterion.centers.numpy()
    gaps = [d2(row, centers[label]) for row, label in zip(rows, labels, strict=True)]
    return softmax(criterion.class_layer, rows, labels) + criterion.center_weight / 2 * mean(gaps)


CLASS_FORMULAS = {
    "softmax": softmax,
    "arcmargin": with_target(lambda c, angle: enlarged(angle, c.arc_margin)),
    "cosface": with_target(lambda c, angle: math.cos(angle) - c.cos_margin),
    "sphereface": sphereface,
    "combined": with_target(
        lambda c, angle: math.cos(c.angle_factor * angle + c.arc_margin) - c.cos_margin
    ),
    "normsoftmax": with_target(lambda c, angle: math.cos(angle)),
    "adacos": adacos,
    "subcenter": subcenter,
    "curricularface": curricularface,
    "adaface": adaface,
    "elastic_arc": with_target(lambda c, angle: math.cos(min(angle + c.margin, math.pi))),
    "elastic_cos": with_target(lambda c, angle: math.cos(angle) - c.margin),
    "proxy_nca": proxy_nca,
    "proxy_anchor": proxy_anchor,
    "soft_triple": soft_triple,
    "magface": magface,
    "center": center,
    "vpl": with_target(lambda c, angle: enlarged(angle, c.arc_margin)),
}
