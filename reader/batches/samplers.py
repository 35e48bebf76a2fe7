"""Samplers choose the images of every training batch, from labels, a seed and the step alone.

All of them draw one global batch per step, the same on every rank, and hand each rank its
contiguous share. Nothing but the step is remembered, so a resumed run continues the sequence.
"""

from __future__ import annotations

import numpy as np

from metric_learning.reader.batches.shares import (
    check_seed,
    classes_with_pairs,
    group_by_class,
    share_of_rank,
    too_few_classes,
)

# First word of every random key, so that streams of one seed are unrelated.
_SHUFFLED_STREAM, _BLOCK_STREAM, _TRIPLE_STREAM = 1, 2, 3
_PAIR_STREAM = 7  # 4 to 6 are those of augmentation, replacements and the network's draws


class ShuffledSampler:
    """Every image exactly once per epoch, in an order that is drawn anew for every epoch.

    Epochs follow one another without a gap: batches are always full and may span two epochs.

    Args:
        labels: (N,) integer labels of the training images.
        batch_size: images per step over all ranks.
        seed: non-negative seed.
        rank: number of this process.
        world_size: number of processes.
        num_parts: parts that a rank computes its share in, each of whole groups.

    Raises:
        ValueError: there are no images, or the batch cannot be shared by the ranks.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._share = share_of_rank(batch_size, 1, "", rank, world_size, num_parts)
        self._seed = check_seed(seed)
        self._num_images = len(labels)
        if self._num_images == 0:
            raise ValueError("expected training images, got none: check the data set")
        self.note = ""
        if batch_size > self._num_images:
            self.note = f"a batch of {batch_size} repeats images: there are {self._num_images}"
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


class ClassBlockSampler:
    """Batches of P = batch_size / K distinct classes with K images each, class by class (P-K).

    Every step draws its classes and images independently of the others. The K images are distinct;
    a class with fewer than K images has each of them repeated equally often (to within one), so it
    never shifts a block.

    Args:
        labels: (N,) integer labels of the training images.
        batch_size: images per step over all ranks, a multiple of K times world_size.
        samples_each_class: K, at least 2.
        seed: non-negative seed.
        rank: number of this process; it receives whole blocks.
        world_size: number of processes.
        num_parts: parts that a rank computes its share in, each of whole groups.

    Raises:
        ValueError: K < 2, a batch that is not made of whole blocks, or fewer classes than P.
    """

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
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        what = "--samples_each_class"
        self._share = share_of_rank(
            batch_size, samples_each_class, what, rank, world_size, num_parts
        )
        self._seed = check_seed(seed)
        self._images, self._starts, self._sizes = group_by_class(labels)
        self._blocks = batch_size // samples_each_class
        least_blocks = 2 * world_size * num_parts
        if self._blocks < least_blocks:
            per = "device" if num_parts == 1 else "device and part"
            raise ValueError(
                f"expected a batch of at least 2 classes per {per}, got {batch_size} images of "
                f"{samples_each_class} per class: raise --train_batch_size to "
                f"{least_blocks * samples_each_class} or more"
            )
        if len(self._sizes) < self._blocks:
            raise ValueError(too_few_classes(batch_size, samples_each_class, len(self._sizes)))
        self._slots = np.arange(samples_each_class)
        self.num_repeated_classes = int((self._sizes < samples_each_class).sum())
        self.note = ""
        if self.num_repeated_classes:
            self.note = (
                f"{self.num_repeated_classes} classes have fewer than {samples_each_class} images: "
                "theirs are repeated"
            )

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""
        rng = np.random.default_rng([_BLOCK_STREAM, self._seed, step])
        classes = rng.choice(len(self._sizes), self._blocks, replace=False)
        offsets = np.empty((self._blocks, len(self._slots)), dtype=np.int64)
        for row, size in zip(offsets, self._sizes[classes], strict=True):
            row[:] = rng.permutation(size)[self._slots % size]
        return self._images[self._starts[classes, None] + offsets].reshape(-1)[self._share]


class TripleSampler:
    """Batches of triples a p n a p n …: two images of one random class and one of another.

    Every triple draws two distinct classes, two distinct images (anchor and positive) of the first
    and one image (negative) of the second. Classes with a single image serve as negatives only.

    Args:
        labels: (N,) integer labels of the training images.
        batch_size: images per step over all ranks, a multiple of 3 times world_size.
        seed: non-negative seed.
        rank: number of this process; it receives whole triples.
        world_size: number of processes.
        num_parts: parts that a rank computes its share in, each of whole groups.

    Raises:
        ValueError: a batch that is not made of whole triples, fewer than two classes, or no class
            with two images.

    Differs from the reference: a class with a single image never provides the anchor and positive.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._share = share_of_rank(batch_size, 3, "a triple", rank, world_size, num_parts)
        self._seed = check_seed(seed)
        self._images, self._starts, self._sizes = group_by_class(labels)
        self._anchor_classes = classes_with_pairs(self._sizes, "triples")
        num_single = len(self._sizes) - len(self._anchor_classes)
        self.note = f"{num_single} classes have one image: negatives only" if num_single else ""

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


class PairSampler:
    """Batches of pairs a b a b …, in turn of one random class and of two random classes.

    A positive pair is two distinct images of a class with at least two, a negative pair one image
    of each of two distinct classes; so half of the pairs are positive, on every rank.

    Args:
        labels: (N,) integer labels of the training images.
        batch_size: images per step over all ranks, a multiple of 4 times world_size.
        seed: non-negative seed.
        rank: number of this process; it receives whole pairs of pairs.
        world_size: number of processes.
        num_parts: parts that a rank computes its share in, each of whole groups.

    Raises:
        ValueError: a batch that is not made of a positive and a negative pair each, fewer than two
            classes, or no class with two images.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        what = "a positive and a negative pair"
        self._share = share_of_rank(batch_size, 4, what, rank, world_size, num_parts)
        self._seed = check_seed(seed)
        self._images, self._starts, self._sizes = group_by_class(labels)
        self._positive_classes = classes_with_pairs(self._sizes, "pairs")
        num_single = len(self._sizes) - len(self._positive_classes)
        self.note = f"{num_single} classes have one image: negatives only" if num_single else ""

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
