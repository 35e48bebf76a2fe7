"""What samplers share: images by class, the part of a batch that is a rank's, and their errors."""

from __future__ import annotations

import math

import numpy as np


def classes_with_pairs(sizes: np.ndarray, what: str) -> np.ndarray:
    """Return the classes that have two images or more, of at least two classes.

    Raises:
        ValueError: there is no such class, or only one class.
    """
    if len(sizes) < 2:
        raise ValueError(
            f"expected at least 2 training classes for {what}, got {len(sizes)}: "
            "check the data set and --train_classes"
        )
    classes = np.flatnonzero(sizes >= 2)
    if len(classes) == 0:
        raise ValueError(
            f"expected a training class with 2 images or more for {what}, got one image of "
            f"each of {len(sizes)} classes: add images"
        )
    return classes


def group_by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image indices sorted by class, and where each class starts and how many it has."""
    labels = np.asarray(labels)
    images = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[images], return_index=True, return_counts=True)
    return images, starts, sizes


def share_of_rank(
    batch_size: int, group_size: int, group: str, rank: int, world_size: int, num_parts: int
) -> slice:
    """Return the rows of the global batch that belong to a rank, in whole groups."""
    if not 0 <= rank < world_size:
        raise ValueError(f"expected a rank between 0 and {world_size - 1}, got {rank}")
    factors = ((group_size, group), (world_size, "devices"), (num_parts, "--accumulation_steps"))
    multiple = math.prod(number for number, _ in factors)
    if batch_size <= 0 or batch_size % multiple:
        reasons = [f"{number} ({what})" for number, what in factors if number > 1]
        raise ValueError(
            f"expected a batch size that is a positive multiple of {' x '.join(reasons) or 1}, "
            f"got {batch_size}: use --train_batch_size="
            f"{max(round(batch_size / multiple), 1) * multiple}"
        )
    size = batch_size // world_size
    return slice(rank * size, (rank + 1) * size)


def check_seed(seed: int) -> int:
    """Return a seed, or raise ValueError where it is negative."""
    if seed < 0:
        raise ValueError(f"expected a seed of 0 or more, got {seed}: change --seed")
    return seed


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
