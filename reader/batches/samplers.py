"""Samplers choose the images of every training batch, from labels, a seed and the step alone.

All of them draw one global batch per step, the same on every rank, and hand each rank its
contiguous share. Nothing but the step is remembered, so a resumed run continues the sequence.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

# First word of every random key, so that streams of one seed are unrelated.
_SHUFFLED_STREAM, _BLOCK_STREAM, _TRIPLE_STREAM = 1, 2, 3
_PAIR_STREAM = 7  # 4 to 6 are those of augmentation, replacements and the network's draws


class SeededSampler:
    """What all samplers share: labels by class, and this rank's part of a batch of whole groups.

    Args:
        labels: (N,) integer labels of the training images.
        batch_size: images per step over all ranks.
        seed: non-negative seed.
        rank: number of this process; it receives whole groups.
        world_size: number of processes.
        num_parts: parts that a rank computes its share in, each of whole groups.

    Raises:
        ValueError: the batch cannot be shared in whole groups, or the labels do not suffice.
    """

    group_size, group = 1, ""  # images of a group, on one rank and in one part, and what it is

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank between 0 and {world_size - 1}, got {rank}")
        factors = {self.group: self.group_size, "devices": world_size}
        check_multiple(batch_size, factors | {"--accumulation_steps": num_parts})
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {seed}: change --seed")

        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.note, self._seed = "", seed  # the note: what the log should say about the data
        size = batch_size // world_size
        self._share = slice(rank * size, (rank + 1) * size)

        # Image indices sorted by class; where each class starts among them, and its size.
        self._images = np.argsort(labels, kind="stable")
        _, self._starts, self._sizes = np.unique(
            np.asarray(labels)[self._images], return_index=True, return_counts=True
        )
        self._prepare()

    def _prepare(self) -> None:
        """Check the labels, and note what is special about them."""
        raise NotImplementedError

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write into a run folder what a resumed run needs to draw the same, here nothing."""

    def _classes_with_pairs(self, what: str) -> np.ndarray:
        """Return the classes with two images or more, and note how many have one."""
        num_classes = len(self._sizes)
        if num_classes < 2:
            raise ValueError(
                f"expected at least 2 training classes for {what}, got {num_classes}: "
                "check the data set and --train_classes"
            )
        classes = np.flatnonzero(self._sizes >= 2)
        if len(classes) == 0:
            raise ValueError(
                f"expected a training class with 2 images or more for {what}, got one image of "
                f"each of {num_classes} classes: add images"
            )

        num_single = num_classes - len(classes)
        self.note = f"{num_single} classes have one image: negatives only" if num_single else ""
        return classes


class ShuffledSampler(SeededSampler):
    """Every image exactly once per epoch, in an order that is drawn anew for every epoch.

    Epochs follow one another without a gap: batches are always full and may span two epochs.
    Arguments are those of `SeededSampler`.
    """

    def _prepare(self) -> None:
        self._num_images = len(self._images)
        if self._num_images == 0:
            raise ValueError("expected training images, got none: check the data set")
        if self.batch_size > self._num_images:
            self.note = f"a batch of {self.batch_size} repeats images: there are {self._num_images}"
        self._epoch = -1
        self._order: np.ndarray = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        positions = step * self.batch_size + np.arange(self.batch_size)[self._share]
        epochs, offsets = np.divmod(positions, self._num_images)
        indices = np.empty(len(positions), dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._order_of(epoch)[offsets[in_epoch]]
        return indices

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng([_SHUFFLED_STREAM, self._seed, epoch])
            self._order = rng.permutation(self._num_images)
            self._epoch = epoch
        return self._order


class ClassBlockSampler(SeededSampler):
    """Batches of P = batch_size / K distinct classes with K images each, class by class (P-K).

    Every step draws its classes and images independently of the others. The K images are distinct;
    a class with fewer than K images has each of them repeated equally often (to within one), so it
    never shifts a block. Arguments are those of `SeededSampler` and K, `samples_each_class`;
    batch_size is a multiple of K times world_size.

    Raises:
        ValueError: K < 2, a batch that is not made of whole blocks, or fewer classes than P.
    """

    group = "--samples_each_class"
    blocks_of_group = 1  # that lie on one rank and in one part

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        samples_each_class: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        if samples_each_class < 2:
            raise ValueError(
                f"expected at least 2 images of each class, got {samples_each_class}: "
                "raise --samples_each_class"
            )
        self.group_size = samples_each_class * self.blocks_of_group
        self._images_each = samples_each_class
        self._least_blocks = max(2, self.blocks_of_group) * world_size * num_parts
        self._least_per = "device" if num_parts == 1 else "device and part"
        super().__init__(labels, batch_size, seed, rank, world_size, num_parts)

    def _prepare(self) -> None:
        size = self._images_each
        self._blocks = self.batch_size // size
        if self._blocks < self._least_blocks:
            raise ValueError(
                f"expected a batch of at least 2 classes per {self._least_per}, got "
                f"{self.batch_size} images of {size} per class: raise --train_batch_size to "
                f"{self._least_blocks * size} or more"
            )
        if len(self._sizes) < self._blocks:
            raise ValueError(too_few_classes(self.batch_size, size, len(self._sizes)))

        self._slots = np.arange(size)
        self.num_repeated_classes = int((self._sizes < size).sum())
        if self.num_repeated_classes:
            self.note = (
                f"{self.num_repeated_classes} classes have fewer than {size} images: theirs are "
                "repeated"
            )

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        rng = np.random.default_rng([_BLOCK_STREAM, self._seed, step])
        classes = self._draw_classes(step, rng)
        offsets = np.empty((self._blocks, len(self._slots)), dtype=np.int64)
        for row, size in zip(offsets, self._sizes[classes], strict=True):
            row[:] = rng.permutation(size)[self._slots % size]
        return self._images[self._starts[classes, None] + offsets].reshape(-1)[self._share]

    def _draw_classes(self, step: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the classes of a batch, by their number in label order."""
        return rng.choice(len(self._sizes), self._blocks, replace=False)


class TripleSampler(SeededSampler):
    """Batches of triples a p n a p n …: two images of one random class and one of another.

    Every triple draws two distinct classes, two distinct images (anchor and positive) of the first
    and one image (negative) of the second. Classes with a single image serve as negatives only.
    Arguments are those of `SeededSampler`; batch_size is a multiple of 3 times world_size.

    Differs from the reference: a class with a single image never provides the anchor and positive.
    """

    group_size, group = 3, "a triple"

    def _prepare(self) -> None:
        self._anchor_classes = self._classes_with_pairs("triples")

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        rng = np.random.default_rng([_TRIPLE_STREAM, self._seed, step])
        num_triples = self.batch_size // 3
        classes = self._anchor_classes[rng.integers(len(self._anchor_classes), size=num_triples)]
        others = rng.integers(len(self._sizes) - 1, size=num_triples)
        others += others >= classes

        anchors = rng.integers(self._sizes[classes])
        positives = rng.integers(self._sizes[classes] - 1)
        positives += positives >= anchors
        negatives = rng.integers(self._sizes[others])

        starts, other_starts = self._starts[classes], self._starts[others]
        triples = np.stack([starts + anchors, starts + positives, other_starts + negatives], axis=1)
        return self._images[triples.reshape(-1)][self._share]


class PairSampler(SeededSampler):
    """Batches of pairs a b a b …, in turn of one random class and of two random classes.

    A positive pair is two distinct images of a class with at least two, a negative pair one image
    of each of two distinct classes; so half of the pairs are positive, on every rank. Arguments are
    those of `SeededSampler`; batch_size is a multiple of 4 times world_size.
    """

    group_size, group = 4, "a positive and a negative pair"

    def _prepare(self) -> None:
        self._positive_classes = self._classes_with_pairs("pairs")

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        rng = np.random.default_rng([_PAIR_STREAM, self._seed, step])
        num_each = self.batch_size // 4
        classes = rng.choice(self._positive_classes, num_each)
        first = rng.integers(self._sizes[classes])
        second = rng.integers(self._sizes[classes] - 1)
        second += second >= first

        lefts = rng.integers(len(self._sizes), size=num_each)
        rights = rng.integers(len(self._sizes) - 1, size=num_each)
        rights += rights >= lefts
        groups = (
            self._starts[classes] + first,
            self._starts[classes] + second,
            self._starts[lefts] + rng.integers(self._sizes[lefts]),
            self._starts[rights] + rng.integers(self._sizes[rights]),
        )
        return self._images[np.stack(groups, axis=1).reshape(-1)][self._share]


def check_multiple(batch_size: int, factors: dict[str, int]) -> None:
    """Raise ValueError where the batch size is no multiple of the factors, what -> number."""
    multiple = math.prod(factors.values())
    if batch_size <= 0 or batch_size % multiple:
        reasons = [f"{number} ({what})" for what, number in factors.items() if number > 1]
        raise ValueError(
            f"expected a batch size that is a positive multiple of {' x '.join(reasons) or 1}, "
            f"got {batch_size}: use --train_batch_size="
            f"{max(round(batch_size / multiple), 1) * multiple}"
        )


def too_few_classes(batch_size: int, samples_each_class: int, num_classes: int) -> str:
    """Say which batch size, or which number of images per class, the data set allows."""
    advice = f"use --train_batch_size={num_classes * samples_each_class} or less"
    for larger in range(samples_each_class + 1, batch_size // 2 + 1):
        if batch_size % larger == 0 and batch_size // larger <= num_classes:
            advice += f", or --samples_each_class={larger}"
            break
    return (
        f"expected at least {batch_size // samples_each_class} training classes (batch size "
        f"{batch_size} / {samples_each_class} images of each class), got {num_classes}: {advice}"
    )
