"""Samplers of batches whose classes are hard to tell apart: near ones, or of few super classes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metric_learning.common.arrays import map_array
from metric_learning.common.atomic import write_atomically
from metric_learning.reader.batches.samplers import ClassBlockSampler

_PAIRS_STREAM = 10  # 1 to 9 are those of samplers, augmentation, steps and views
BATCHES_PER_PAIR = 10  # of super classes, in ROADMAP's recipe for Stanford Online Products
NEAREST = "nearest_classes.npy"  # in a run folder


class Relations(NamedTuple):
    """How training classes are related, by label.

    Attributes:
        super_classes: (C,) int64, the number of the super class of each, or None.
        nearest: (C, M) int32, the classes nearest to each, or None.
    """

    super_classes: np.ndarray | None = None
    nearest: np.ndarray | None = None


def read_nearest(folder: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the nearest classes that a run folder holds; None where it has none of that shape."""
    try:
        found = np.asarray(map_array(folder / NEAREST, NEAREST))
    except (OSError, ValueError):
        return None
    is_one = found.shape == shape and found.dtype == np.int32
    return found if is_one and ((found >= 0) & (found < shape[0])).all() else None


class HierarchicalSampler(ClassBlockSampler):
    """P-K batches of two super classes each: half of the classes are of the one, half of the other.

    All pairs of super classes come in a random order, each BATCHES_PER_PAIR times, and then in
    another. Where a super class has fewer classes than half a batch, the other one gives more. The
    blocks are in a random order, so that ranks and parts see both. As in ROADMAP (Ramzi et al.
    2021, https://arxiv.org/abs/2110.01445), from Cakir et al. 2019; but that batches are full, and
    blocks stay together. Arguments are those of `ClassBlockSampler`, and the super classes.

    Raises:
        ValueError: there are fewer than two super classes, or a pair has fewer classes than P.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        samples_each_class: int,
        super_classes: np.ndarray,
        *share: int,
    ) -> None:
        self._super_classes = super_classes
        self._epoch = -1
        super().__init__(labels, batch_size, samples_each_class, *share)

    def _prepare(self) -> None:
        super()._prepare()
        numbers = np.unique(self._super_classes)
        self._members = [np.flatnonzero(self._super_classes == number) for number in numbers]
        if len(self._members) < 2:
            raise ValueError(
                f"--sampler=hierarchical needs 2 super classes, found {len(self._members)}: leave "
                "it out"
            )

        fewest = sum(sorted(len(members) for members in self._members)[:2])
        if fewest < self._blocks:
            raise ValueError(
                f"--sampler=hierarchical: the two smallest super classes have {fewest} classes, a "
                f"batch takes {self._blocks}: use --train_batch_size={fewest * self.group_size} or "
                "less"
            )
        self._pairs = np.array(list(combinations(range(len(self._members)), 2)))

    def _draw_classes(self, step: int, rng: np.random.Generator) -> np.ndarray:
        epoch, number = divmod(step, BATCHES_PER_PAIR * len(self._pairs))
        if epoch != self._epoch:
            order = np.random.default_rng([_PAIRS_STREAM, self._seed, epoch])
            self._order = order.permutation(BATCHES_PER_PAIR * len(self._pairs))
            self._epoch = epoch
        first, second = self._pairs[self._order[number] // BATCHES_PER_PAIR]

        sizes = len(self._members[first]), len(self._members[second])
        half = min(max(self._blocks // 2, self._blocks - sizes[1]), sizes[0])
        chosen = [
            rng.choice(self._members[first], half, replace=False),
            rng.choice(self._members[second], self._blocks - half, replace=False),
        ]
        return rng.permutation(np.concatenate(chosen))


class HardClassSampler(ClassBlockSampler):
    """P-K batches of groups of classes: a random one, and the N classes that are nearest to it.

    No class is in a batch twice: those that a group before it has are passed over. Groups are whole
    on every rank and in every part. Arguments are those of `ClassBlockSampler`, and (C, M) int32
    the M = P - 1 nearest classes of each, and N.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        samples_each_class: int,
        nearest: np.ndarray,
        num_hard: int,
        *share: int,
    ) -> None:
        self.blocks_of_group = 1 + num_hard
        self.group = "--samples_each_class x (1 + --hard_classes)"
        self._nearest = nearest
        super().__init__(labels, batch_size, samples_each_class, *share)

    def save(self, folder: Path) -> None:
        """Write the nearest classes into a run folder, where a resume finds them."""

        def write(file: Path) -> None:
            with file.open("wb") as opened:
                np.save(opened, self._nearest)

        write_atomically(folder / NEAREST, write)

    def _draw_classes(self, step: int, rng: np.random.Generator) -> np.ndarray:
        is_taken = np.zeros(len(self._sizes), dtype=bool)
        classes: list[int] = []
        for anchor in rng.permutation(len(self._sizes)):
            if len(classes) == self._blocks:
                break
            if not is_taken[anchor]:
                near = self._nearest[anchor]
                group = [anchor, *near[~is_taken[near]][: self.blocks_of_group - 1]]
                is_taken[group] = True
                classes += group
        return np.array(classes)
