"""Counting of similarities against thresholds by torch: on a GPU, or where numba is missing."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.common.memory import free_memory
from metric_learning.retrieval.counting.bins import HALF, NUM_BINS, Bins
from metric_learning.retrieval.counting.full_precision import full_precision
from metric_learning.retrieval.counting.thresholds import (
    MOST_UNDECIDED,
    NegativePairs,
    Share,
    Thresholds,
    rounding_error,
)

TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}  # most similarities at once, by type of device
BYTES_PER_ELEMENT = 64  # that a GPU should have free for each of them
COPIES = 2  # of the normalised gallery that fit into free memory where one is kept
TILE_ROWS = 2048
PAIR_ELEMENTS = 2**24  # numbers gathered at once for single pairs
MOST_COMPARED = 32  # thresholds per query up to which all similarities are compared with each
WORD, WORDS = 8, 64  # bytes of a number, and numbers that are added up before their bytes are


class TorchCounter:
    """A `Counter` of queries (Q, D), and a gallery (G, D) if it is another, on a torch device."""

    def __init__(self, queries: Tensor, gallery: Tensor | None) -> None:
        self.is_self_retrieval = gallery is None
        self.queries, self.query_norms = queries, _norms(queries)
        self.gallery, self.gallery_norms = self.queries, self.query_norms
        if gallery is not None:
            self.gallery, self.gallery_norms = gallery, _norms(gallery)
        self.units: Tensor | None = None  # the normalised gallery (G, D) float32, while it is kept
        self.error = rounding_error(queries.shape[1], np.float32)

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """See Counter."""
        device = self.queries.device
        rows, columns = (torch.from_numpy(r).to(device) for r in (query_rows, gallery_rows))
        return self._cosines(rows, columns).cpu().numpy()

    def block_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """See Counter."""
        device, size = self.queries.device, max(1, PAIR_ELEMENTS // self.queries.shape[1])
        rows, columns = (torch.from_numpy(r).to(device) for r in (query_rows, gallery_rows))
        block = np.empty((len(rows), len(columns)))

        for top in range(0, len(rows), size):
            own = _normalised(self.queries, self.query_norms, rows[top : top + size], torch.float64)
            for left in range(0, len(columns), size):
                part = columns[left : left + size]
                factors = _normalised(self.gallery, self.gallery_norms, part, torch.float64)
                cosines = (own @ factors.T).cpu().numpy()
                block[top : top + size, left : left + size] = cosines
        return block

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """See Counter."""
        counts = np.diff(offsets)
        for count in np.unique(counts):  # all parts of one length at once
            places = offsets[:-1][counts == count, None] + np.arange(count)
            values[places] = np.sort(values[places], 1)[:, ::-1]

    @torch.inference_mode()
    def count(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Counter."""
        counts = np.zeros((2, len(thresholds.cosines)), np.int64)
        starts = range(*query_range, TILE_ROWS)[share.rank :: share.size]
        if len(starts) > 1 and self.units is None:
            self._keep_units()
        with full_precision():
            for start in starts:
                self._count_block(start, min(start + TILE_ROWS, query_range[1]), thresholds, counts)
        ahead, level = share.add(counts[0]), share.add(counts[1])
        positives_ahead, positives_level = thresholds.positives(self.pair_cosines)
        return ahead - positives_ahead, level - positives_level

    @torch.inference_mode()
    def count_negatives(self, pairs: NegativePairs, bins: Bins, share: Share) -> np.ndarray:
        """See Counter; in float64 throughout."""
        device = self.queries.device
        rows, columns, first, last = (torch.from_numpy(array).to(device) for array in pairs)
        counts = torch.zeros(NUM_BINS + 1, dtype=torch.int64, device=device)  # one for the others
        width = max(1, _elements_at_once(device) // TILE_ROWS)
        for top in range(0, len(rows), TILE_ROWS)[share.rank :: share.size]:
            own = slice(top, top + TILE_ROWS)
            block = _normalised(self.queries, self.query_norms, rows[own], torch.float64)

            for left in range(top if self.is_self_retrieval else 0, len(columns), width):
                part = columns[left : left + width]
                factors = _normalised(self.gallery, self.gallery_norms, part, torch.float64)
                places = ((block @ factors.T - bins.centre) / bins.width).round_()
                places = places.clamp_(-HALF, HALF).long() + HALF
                numbers = torch.arange(left, left + len(part), device=device)
                is_left_out = (first[own, None] <= numbers) & (numbers < last[own, None])
                places.masked_fill_(is_left_out, NUM_BINS)
                counts += torch.bincount(places.view(-1), minlength=len(counts))

        return counts[:NUM_BINS].cpu().numpy()

    def _keep_units(self) -> None:
        """Normalise the gallery once for all blocks of queries, where there is room for it."""
        gallery = self.gallery
        if COPIES * 4 * gallery.numel() > _free_bytes(gallery.device):
            return
        units = torch.empty_like(gallery, dtype=torch.float32)
        rows = torch.arange(len(gallery), device=gallery.device)
        for part in torch.split(rows, max(1, PAIR_ELEMENTS // gallery.shape[1])):
            units[part] = _normalised(gallery, self.gallery_norms, part, torch.float32)
        self.units = units

    def _count_block(
        self, start: int, stop: int, thresholds: Thresholds, counts: np.ndarray
    ) -> None:
        """Count the whole gallery for queries start..stop into counts (2, M)."""
        firsts, lasts = thresholds.offsets[start:stop], thresholds.offsets[start + 1 : stop + 1]
        positions = lasts[:, None] - 1 - np.arange((lasts - firsts).max())  # BxR, worst first
        exists = positions >= firsts[:, None]
        if not exists.any():
            return
        cosines = np.full(positions.shape, np.inf)
        cosines[exists] = thresholds.cosines[positions[exists]]
        found = self._count_above(
            start, torch.from_numpy(cosines).to(self.queries.device), thresholds.tolerance
        )
        for total, part in zip(counts, found, strict=True):
            total[positions[exists]] = part.cpu().numpy()[exists]

    def _count_above(
        self, start: int, thresholds: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Count the gallery ahead of, and level with, thresholds (B, R) of queries from `start`."""
        rows = torch.arange(start, start + len(thresholds), device=thresholds.device)
        width = max(1, _elements_at_once(rows.device) // len(rows))
        block = _normalised(self.queries, self.query_norms, rows, torch.float32)

        # A similarity that beats n thresholds adds 1 at n; sums from the right follow.
        shape = len(rows), thresholds.shape[1] + 1
        ahead, reached = torch.zeros(2, *shape, dtype=torch.int64, device=rows.device)
        margin = tolerance + self.error
        low, high = ((thresholds + sign * margin).float() for sign in (-1, 1))
        for left in range(0, len(self.gallery), width):
            columns = torch.arange(left, min(left + width, len(self.gallery)), device=rows.device)
            if self.units is not None:
                factors = self.units[left : left + width]
            else:
                factors = _normalised(self.gallery, self.gallery_norms, columns, torch.float32)
            similarities = block @ factors.T
            beaten = _num_below(high, similarities, right=True)
            undecided = (beaten != _num_below(low, similarities, right=True)).nonzero()

            # Pairs that are undecided in float32 are decided in float64.
            if len(undecided) > MOST_UNDECIDED * similarities.numel():
                block64 = _normalised(self.queries, self.query_norms, rows, torch.float64)
                factors64 = _normalised(self.gallery, self.gallery_norms, columns, torch.float64)
                exact = block64 @ factors64.T
                ahead += _histogram(_num_below(thresholds + tolerance, exact), shape)
                reached += _histogram(_num_below(thresholds - tolerance, exact, right=True), shape)
                continue
            found = _histogram(beaten, shape)
            ahead += found
            reached += found
            self._decide(rows, columns, beaten, undecided, thresholds, tolerance, (ahead, reached))

        # How many similarities beat each threshold, from how many beat n of them.
        ahead, reached = (counts.flip(1).cumsum(1).flip(1)[:, 1:] for counts in (ahead, reached))
        return ahead, reached - ahead

    def _decide(
        self,
        rows: Tensor,
        columns: Tensor,
        beaten: Tensor,
        undecided: Tensor,
        thresholds: Tensor,
        tolerance: float,
        histograms: tuple[Tensor, Tensor],
    ) -> None:
        """Move pairs (M, 2) of a tile to how many thresholds they beat, and reach, in float64.

        The histograms (B, R + 1) have them at what they beat in float32, `beaten` (B, J).
        """
        size = max(1, PAIR_ELEMENTS // thresholds.shape[1])
        for pairs in torch.split(undecided, size) if len(undecided) else ():
            at, j = pairs.unbind(1)
            bounds, cosines = thresholds[at], self._cosines(rows[at], columns[j])[:, None]
            passed = _num_below(bounds + tolerance, cosines)
            come_to = _num_below(bounds - tolerance, cosines, right=True)
            for histogram, after in zip(histograms, (passed, come_to), strict=True):
                for numbers, change in ((beaten[at, j], -1), (after[:, 0], 1)):
                    places = at * histogram.shape[1] + numbers
                    changes = torch.full_like(places, change)
                    histogram.view(-1).index_add_(0, places, changes)

    def _cosines(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cosines (M,) float64 of pairs of a query and a gallery image."""
        size = max(1, PAIR_ELEMENTS // self.queries.shape[1])
        cosines = [
            (
                _normalised(self.queries, self.query_norms, r, torch.float64)
                * _normalised(self.gallery, self.gallery_norms, c, torch.float64)
            ).sum(1)
            for r, c in zip(torch.split(rows, size), torch.split(columns, size), strict=True)
        ]
        return torch.cat(cosines)


def _elements_at_once(device: torch.device) -> int:
    if device.type != "cuda":
        return TILE_ELEMENTS["cpu"]
    free = _free_bytes(device)
    return min(TILE_ELEMENTS["cuda"], max(TILE_ELEMENTS["cpu"], free // BYTES_PER_ELEMENT))


def _free_bytes(device: torch.device) -> int:
    """Return how many bytes are free on a device; 0 where nothing tells."""
    if device.type != "cuda":
        return free_memory() or 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _num_below(bounds: Tensor, values: Tensor, right: bool = False) -> Tensor:
    """Count the ascending bounds (B, R) below values (B, J), or with `right` up to them, int32."""
    return torch.searchsorted(bounds, values, right=right, out_int32=True)


def _norms(rows: Tensor) -> Tensor:
    size = max(1, PAIR_ELEMENTS // rows.shape[1])
    return torch.cat([part.double().norm(dim=1) for part in torch.split(rows, size)])


def _normalised(vectors: Tensor, norms: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    scales = torch.where(norms[rows] > 0, 1 / norms[rows], 0.0)
    return (vectors[rows].double() * scales[:, None]).to(dtype)


def _histogram(beaten: Tensor, shape: tuple[int, int]) -> Tensor:
    """Count how many similarities (B, J) beat n thresholds, (B, R + 1) int64, but for n = 0."""
    num_thresholds = shape[1] - 1
    if num_thresholds > MOST_COMPARED:
        rows, columns = beaten.nonzero(as_tuple=True)
        index = rows * shape[1] + beaten[rows, columns]
        return torch.bincount(index, minlength=math.prod(shape)).view(shape)

    numbers = F.pad(beaten.to(torch.uint8), (0, -beaten.shape[1] % (WORD * WORDS)))
    at_least = [_num_true(numbers >= n) for n in range(1, num_thresholds + 1)]
    exactly = torch.stack([*at_least, torch.zeros_like(at_least[0])], 1).diff(dim=1).neg()
    return F.pad(exactly, (1, 0))


def _num_true(mask: Tensor) -> Tensor:
    """Count what is true in each row of a mask (B, J), J divisible by WORD x WORDS; (B,) int64.

    PyTorch would make eight bytes of each before it adds them up. Here eight of them are a number,
    and so few numbers are added up that no byte overflows.
    """
    words = mask.view(torch.int64).view(len(mask), -1, WORDS)
    return words.sum(2).view(torch.uint8).sum(1)
