"""What stage 2 starts from, whether it ruins that, and whether a class layer learns at all.

The embeddings of a good stage 1 may lie so that a loss is above its value for embeddings that are
all equal. Then the cheapest way down is to shrink them to one point: the loss falls, and so do the
norm, the distances and the recall.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metric_learning.engine.evaluate.compare import before_and_after
from metric_learning.engine.parallel import collectives
from metric_learning.engine.train.criterion import scaled_loss_of
from metric_learning.engine.train.step import Step, unchanged_buffers
from metric_learning.reader.batches.loader import Batch
from metric_learning.retrieval.scores import QueryScores

SAMPLE, MOST_BATCHES = 256, 8  # images that the start is measured on, in at most so many batches
SCALES = tuple(2.0 ** (number / 4) for number in range(-8, 29))  # 0.25 to 128
ABOVE = 1.001  # a loss that is so many times that of the collapsed state is above it
FEWEST = 200  # images that a judgement is about
FALLEN = 0.5  # of its value at the start
COLLAPSED = 1e-4  # spread of the embeddings below which they are all but one point
PER_CLASS = 5  # images of each class that a class layer has seen when it is first judged
AT_CHANCE = 0.02  # part of a loss by which it may differ from that of a guess
SHOWN = ("recall", "norm", "d2_pos", "d2_neg")
COMPARED = ("recall@1", "map@r")

# Embeddings (B, D) and labels (B,) of parts of batches.
Parts = Sequence[tuple[Tensor, Tensor]]


class CollapseError(ValueError):
    """The embeddings of a run have collapsed, and --on_collapse=stop."""


@dataclass
class Watch:
    """The start of a run, and what came of it.

    Attributes:
        is_pair: whether the run is one of stage 2.
        stops: whether a collapse is an error instead of a warning.
        chooses_scale: whether the start chooses the scale of the loss.
        start: `loss`, `collapsed_loss`, `recall`, `norm`, `d2_pos`, `d2_neg` of the first batches.
        before: scores (Q,) float32 per metric of the weights that the run started from.
        latest: those of the last test, and the labels of its queries.
    """

    is_pair: bool
    stops: bool
    chooses_scale: bool
    start: dict[str, float] = field(default_factory=dict)
    before: dict[str, np.ndarray] = field(default_factory=dict)
    latest: QueryScores | None = None
    _seen: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    _is_said: bool = False
    _is_guess_said: bool = False
    _num_images: int = 0
    _of_classes: list[tuple[int, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know of the start."""
        scores = {name: torch.from_numpy(values) for name, values in self.before.items()}
        return {"figures": self.start, "scores": scores}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.start = dict(state.get("figures", {}))
        self.before = {name: values.numpy() for name, values in state.get("scores", {}).items()}

    def begin(self, step: Step, batches: Iterable[Batch], num_steps: int) -> Iterator[Batch]:
        """Yield batches as they are; measure the start of stage 2 on the first of `num_steps`.

        Where --embedding_scale=auto, the scale of the loss is chosen by them.
        """
        pending = iter(batches)
        if not self.is_pair or self.start or num_steps == 0:
            return pending
        share = step.batches.train_batch_size // step.machine.world.size
        number = min(num_steps, MOST_BATCHES, math.ceil(SAMPLE / share))
        first = list(islice(pending, number))

        parts = embed_parts(step, first)
        if self.chooses_scale:
            choose_scale(step, parts)
        self.start = figures_of(step, parts)
        scaled = scaled_loss_of(step.learner.criterion)
        if scaled is not None:
            self.start["scale"] = float(scaled.scale)
        return chain(first, pending)

    def describe_start(self) -> list[str]:
        """Say what the start is, and warn where a collapse is the cheapest way down."""
        start = self.start
        if not start:
            return []
        figures = ", ".join(
            f"{name} {start[name]:.4g}" for name in (*SHOWN, "scale") if name in start
        )

        lines = [
            f"start: loss {start['loss']:.6f}, of embeddings that are all equal "
            f"{start['collapsed_loss']:.6f}; {figures}"
        ]
        if start["loss"] > ABOVE * start["collapsed_loss"]:
            lines.append(
                "warning: the loss starts above its value of embeddings that are all equal, so "
                "the cheapest way down is a collapse: --normalize_embeddings=True (eml, npairs), a "
                "lower --lr or another --loss_name may help"
            )
        return lines

    def judge(self, means: Mapping[str, float], spread: float, num_images: int) -> list[str]:
        """Warn where the embeddings have collapsed, once, until they recover; may raise.

        From the means over the steps since the last log line, which had so many images. Raises
        CollapseError where that is to stop the run.
        """
        self._seen.append((num_images, means))
        if spread < COLLAPSED:
            return self._collapsed(f"all but one point (spread {spread:.1e})")
        counts = [count for count, _ in self._seen]
        if not self.start or sum(counts) < FEWEST:
            return []

        now = {
            name: np.average([each[name] for _, each in self._seen], weights=counts)
            for name in self.start.keys() & means.keys()
        }
        self._seen = []
        has_fallen = {name: now[name] < FALLEN * self.start[name] for name in now}
        if not has_fallen.get("recall", True):
            self._is_said = False
            return []
        words = ", ".join(
            f"{name} {self.start[name]:.4g} -> {now[name]:.4g}" for name in SHOWN if name in now
        )
        if has_fallen["d2_pos"] and has_fallen["d2_neg"]:
            return self._collapsed(f"{words} since the start")
        return self._once(f"warning: the recall in batches is below half of the start's: {words}")

    def judge_classes(
        self, means: Mapping[str, float], num_images: int, guesses: Sequence[float], class_dim: int
    ) -> list[str]:
        """Warn where a class layer still guesses, once, until it does not.

        From the means as for `judge`, the `guesses` of its loss, and the number of its classes.
        """
        self._num_images += num_images
        self._of_classes.append((num_images, means.get("loss_cls", means["loss"])))
        counts = [count for count, _ in self._of_classes]
        is_early = self._num_images < PER_CLASS * class_dim
        if not guesses or is_early or sum(counts) < max(FEWEST, class_dim):
            return []

        loss = float(np.average([value for _, value in self._of_classes], weights=counts))
        self._of_classes = []
        near = [guess for guess in guesses if abs(loss - guess) < AT_CHANCE * guess]
        was_said, self._is_guess_said = self._is_guess_said, bool(near)
        if was_said or not near:
            return []
        return [
            f"warning: the class loss is {loss:.4f}, that of a guess among {class_dim} classes is "
            f"{near[0]:.4f}: nothing is learned yet. Pretrained weights, another --lr or, with "
            "very many classes, a loss of stage 2 first (supcon) may help"
        ]

    def _collapsed(self, words: str) -> list[str]:
        line = (
            f"the embeddings have collapsed: {words}; they seldom recover: lower --lr, "
            "compare directions (--normalize_embeddings=True with eml and npairs), or start from "
            "the end of stage 1"
        )
        if self.stops:
            raise CollapseError(f"{line} (--on_collapse=stop)")
        return self._once(f"warning: {line}")

    def _once(self, line: str) -> list[str]:
        was_said, self._is_said = self._is_said, True
        return [] if was_said else [line]

    def note_test(self, scores: QueryScores, is_start: bool) -> None:
        """Keep the scores of a test; those of the start for good."""
        self.latest = scores
        if is_start:
            self.before = {name: scores.columns[name].astype(np.float32) for name in COMPARED}

    def outcome(self, seed: int) -> tuple[list[str], dict[str, float]]:
        """Compare the last test with that of the start: a table, and a record; empty without."""
        if not self.before or self.latest is None:
            return [], {}
        return before_and_after(self.before, self.latest, seed)


@torch.no_grad()
def guesses_of(criterion: nn.Module, class_dim: int) -> list[float]:
    """Return the losses at which the class layer of a criterion, if any, tells no class apart.

    Of a cross-entropy: log C of logits that are all equal, and, where a margin is added to the
    cosine of an image's own class, that of cosines that are all 0. None of other losses.
    """
    layer: Any = getattr(criterion, "class_layer", criterion)
    layer = getattr(layer, "loss", layer)  # of a split class layer
    if not hasattr(layer, "logit_floor"):
        return []
    guesses = [math.log(class_dim)]
    if hasattr(layer, "add_margin"):
        own = layer.add_margin(torch.zeros(1, 1, device=layer.weight.device))
        others = math.log(max(class_dim - 1, 1))
        guesses.append(float(np.logaddexp(0.0, others - float(layer.scale) * float(own))))
    return guesses


def at_chance(recall: float, chance: float, num_queries: int) -> list[str]:
    """Warn where the Recall@1 of a test is no better than what random embeddings would have."""
    deviation = math.sqrt(chance * (1.0 - chance) / num_queries)
    if recall > chance + 2.0 * deviation:
        return []
    return [
        f"warning: test_recall {recall:.5f} is at chance ({chance:.5f}, its deviation "
        f"{deviation:.5f}): the embeddings tell no classes apart"
    ]


@torch.no_grad()
def embed_parts(step: Step, batches: Sequence[Batch]) -> Parts:
    """Embed the parts of batches as the first steps would without updates; nothing of it stays."""
    device, parts = step.machine.device, []
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), unchanged_buffers(step.learner.network):
        for number, batch in enumerate(batches):
            for part, images in enumerate(
                step.placed(batch).split(step.batches.accumulation_steps)
            ):
                count = math.ceil(
                    len(images.labels) / (step.batches.chunk_size or len(images.labels))
                )
                chunks = enumerate(images.split(count))
                rows = [step.embed(chunk, number, part, place) for place, chunk in chunks]
                parts.append((torch.cat(rows), images.labels))
    return parts


@torch.no_grad()
def figures_of(step: Step, parts: Parts) -> dict[str, float]:
    """Return the means of loss and figures over parts, and of the loss if all in it were equal."""
    learner, world = step.learner, step.machine.world
    device = step.machine.device
    found = []
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        unchanged_buffers(learner.criterion),
    ):
        for embeddings, labels in parts:
            loss, figures = step.stage_loss(learner.criterion, embeddings, labels)
            mean = collectives.average(embeddings.mean(0, keepdim=True), world)
            equal = mean.expand_as(embeddings).contiguous()
            collapsed, others = step.stage_loss(learner.criterion, equal, labels)

            values = {"loss": loss, "collapsed_loss": collapsed} | figures
            if "loss_metric" in figures:  # without the class layer of a joint loss
                values |= {"loss": figures["loss_metric"], "collapsed_loss": others["loss_metric"]}
            found.append(values)

    names = [name for name in found[0] if name in ("loss", "collapsed_loss", *SHOWN)]
    sums = torch.stack([torch.stack([each[name].float() for name in names]) for each in found])
    means = collectives.average(sums.mean(0), world).tolist()
    return dict(zip(names, means, strict=True))


def choose_scale(step: Step, parts: Parts) -> None:
    """Give a scaled loss the scale at which parts lie farthest below the collapsed state.

    There the loss tells most of who belongs together: at a smaller one all distances look alike to
    it, and a larger one is ruled by the few worst pairs. Where it is nowhere below, the scale is 1.
    """
    loss = scaled_loss_of(step.learner.criterion)
    assert loss is not None
    gains = []
    for scale in SCALES:
        loss.scale.fill_(scale)
        found = figures_of(step, parts)
        gains.append(found["collapsed_loss"] - found["loss"])
    best = int(np.argmax(gains))
    loss.scale.fill_(float(f"{SCALES[best]:.3g}") if gains[best] > 0 else 1.0)
