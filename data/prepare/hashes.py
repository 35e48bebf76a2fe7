"""Perceptual hashes of images, and the search for images whose hashes are close."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from metric_learning.common.optional import import_optional

HASH_BITS = 64
_SIDE = 32  # pixels of the shrunken image
_LOW = 8  # frequencies of it in each direction
_BLOCK = 1024  # hashes compared at once
_MIN_BAND, _MAX_BAND = 8, 16  # bits; narrower bands agree too often to save time
_MAX_LINKS = 2**20  # pairs that are kept before they are joined to groups


def perceptual_hash(rgb: np.ndarray) -> int:
    """Hash an image (H, W, 3) uint8 to 64 bits that a change of size or quality keeps.

    pHash: the grey image is shrunk to 32 x 32, and each of its 8 x 8 lowest frequencies of the
    cosine transform gives a bit, whether it is above their median. Unrelated images differ in
    about 32 bits.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    # Rounded, so that what is zero in a flat image is not decided by rounding errors.
    frequencies = np.rint(cv2.dct(small)[:_LOW, :_LOW]).ravel()
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


def check_threshold(threshold: int) -> None:
    """Raise ValueError for bits in which unrelated images differ too."""
    if threshold > HASH_BITS // 2:
        raise ValueError(
            f"--threshold={threshold}: unrelated images differ by about {HASH_BITS // 2} of "
            f"{HASH_BITS} bits; expected less, such as 4"
        )


def find_near_duplicates(hashes: np.ndarray, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep hashes (N,) uint64 that are more than `threshold` bits apart, the first ones first.

    A hash is kept unless one before it is kept and close to it, so a group does not grow from
    neighbour to neighbour: each left-out hash is close to a kept one. Exact; thresholds up to 7
    look only at hashes that agree in a band of bits, larger ones at all pairs.

    Returns:
        (N,) int64, number of the nearest kept hash, a kept one's own; and (N,) int64, the bits
        between them.
    """
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    distinct = np.sort(firsts)  # numbers of the first of each, in the order given
    codes = hashes[distinct].view(np.uint8).reshape(-1, HASH_BITS // 8)
    kept, index = _choose_kept(codes, threshold)
    keepers, bits = np.arange(len(codes)), np.zeros(len(codes), dtype=np.int64)
    is_left_out = np.isin(keepers, kept, invert=True)
    found, nearest = index.search(codes[is_left_out], 1)
    keepers[is_left_out], bits[is_left_out] = kept[nearest[:, 0]], found[:, 0]
    position = np.searchsorted(distinct, firsts)[inverse]  # of each hash in `distinct`
    return distinct[keepers[position]].astype(np.int64), bits[position]


def group_near_duplicates(hashes: np.ndarray, threshold: int) -> np.ndarray:
    """Number the groups of hashes (N,) uint64, so that near ones are in one: (N,) int64.

    Two hashes that differ in at most `threshold` bits are of one group, and so is what either is
    near to. Exact: of two such hashes one of threshold + 1 bands of bits is equal, so that only
    those are compared. Without faiss.
    """
    codes, inverse = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(codes))
    links: list[np.ndarray] = []  # each 2xL, of rows of `codes`

    for bits in np.array_split(np.arange(HASH_BITS, dtype=np.uint64), threshold + 1):
        mask = np.bitwise_or.reduce(np.uint64(1) << bits)
        order = np.argsort(codes & mask, kind="stable")
        ordered, bands = codes[order], (codes & mask)[order]
        rows, step = np.arange(len(codes)), 0

        while len(rows):  # those whose band is that of the hash so many steps on
            step += 1
            rows = rows[rows + step < len(codes)]
            rows = rows[bands[rows] == bands[rows + step]]
            near = rows[_count_bits(ordered[rows] ^ ordered[rows + step]) <= threshold]
            links.append(order[np.stack([near, near + step])])
            if sum(map(np.size, links)) > _MAX_LINKS:
                groups, links = _join(groups, links), []

    return _join(groups, links)[inverse].astype(np.int64)


def _join(groups: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    """Join groups (N,) int64 of which links, each (2, L) of rows, lead from one to another."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first, second = groups[np.concatenate([np.zeros((2, 0), dtype=np.int64), *links], axis=1)]
    graph = coo_matrix((np.ones(len(first)), (first, second)), (len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups]


def _count_bits(codes: np.ndarray) -> np.ndarray:
    """Count the bits that are set of codes (N,) uint64: (N,)."""
    return np.unpackbits(codes.view(np.uint8).reshape(-1, HASH_BITS // 8), axis=1).sum(1)


def _build_index(threshold: int) -> Any:
    """Build an index of codes up to `threshold` bits away: one of threshold + 1 bands is equal."""
    faiss = import_optional("faiss", "the search for near duplicates", "faiss-cpu")
    width = min(HASH_BITS // (threshold + 1), _MAX_BAND)
    if width < _MIN_BAND:
        return faiss.IndexBinaryFlat(HASH_BITS)
    return faiss.IndexBinaryMultiHash(HASH_BITS, threshold + 1, width)


def _choose_kept(codes: np.ndarray, threshold: int) -> tuple[np.ndarray, Any]:
    """Numbers of the kept codes, ascending, and a faiss index of them; codes (N, 8) uint8."""
    index = _build_index(threshold)
    kept: list[int] = []
    for start in range(0, len(codes), _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, len(codes)))
        if kept:
            is_far = index.search(codes[numbers], 1)[0][:, 0] > threshold
            numbers = numbers[is_far]

        is_close = _hamming(codes[numbers]) <= threshold
        is_kept = np.ones(len(numbers), dtype=bool)
        for i in range(len(numbers)):
            if is_kept[i]:
                is_kept[i + 1 :] &= ~is_close[i, i + 1 :]

        index.add(codes[numbers[is_kept]])
        kept.extend(numbers[is_kept].tolist())
    return np.array(kept, dtype=np.int64), index


def _hamming(codes: np.ndarray) -> np.ndarray:
    """Bits between each two of B codes, (B, B) float32."""
    signs = np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1
    return (HASH_BITS - signs @ signs.T) / 2
