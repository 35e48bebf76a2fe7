"""Bins in which similarities are counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HALF = 2**15  # bins on each side of the middle one; a thread's counts still fit into its cache
NUM_BINS = 2 * HALF + 1
FEW_BINS = 2**10  # where all similarities lie in fewer, they are counted again in finer bins


@dataclass(frozen=True)
class Bins:
    """2^16 + 1 bins of the same width; similarities outside of them count in the outer ones."""

    centre: float = 0.0  # middle of the middle bin
    width: float = 1 / HALF  # of each bin, a power of two

    @property
    def need_float64(self) -> bool:
        """Whether the rounding error of float32 cosines, about 1e-7, matters in such bins."""
        return self.width < 1 / HALF

    @property
    def edges(self) -> np.ndarray:
        """The (NUM_BINS + 1,) edges, float64."""
        return self.centre + (np.arange(NUM_BINS + 1) - HALF - 0.5) * self.width

    def count(self, cosines: np.ndarray) -> np.ndarray:
        """Count cosines (M,) float64 by bin, (NUM_BINS,) int64."""
        nearest = np.rint((cosines - self.centre) / self.width).clip(-HALF, HALF)
        return np.bincount(nearest.astype(np.int64) + HALF, minlength=NUM_BINS)

    def finer(self, counts: np.ndarray) -> Bins | None:
        """Choose finer bins that cover all similarities counted (NUM_BINS,), where few of these do.

        None where many do. Centres of these bins are centres of the finer ones too, so that equal
        similarities that are rounded differently stay in one bin.
        """
        occupied = np.flatnonzero(counts)
        lowest, highest = int(occupied[0]), int(occupied[-1])
        if highest - lowest >= FEW_BINS:
            return None
        span = 2 ** (highest - lowest + 1).bit_length()  # bins to cover, with some to spare
        middle = (lowest + highest) // 2 - HALF
        return Bins(self.centre + middle * self.width, self.width * span / (2 * HALF))
