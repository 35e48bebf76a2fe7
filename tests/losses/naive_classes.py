"""The formula of each stage-1 loss in evaluation mode, written as loops over Python floats."""

import math

import numpy as np
from naive_pairs import mean, unit


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
        criterion.anneal_end, criterion.anneal_start / (1 + 0.12 * int(criterion.num_batches))
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
}
