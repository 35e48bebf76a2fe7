"""A flat map of embeddings on which some images are pictures and the others are dots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

MAX_IMAGES, MAX_CLASSES = 2000, 200
MIN_IMAGES = 10  # fewer make no map
PCA_DIM = 50
WIDTH, HEIGHT, PICTURE = 1000, 680, 36  # px of the drawing


@dataclass(frozen=True)
class EmbeddingMap:
    """Where images lie on a map, made by the method t-SNE or UMAP.

    Attributes:
        rows: (M,) int64, rows of the images.
        centres: (M, 2) float, x and y in px from the top left.
        is_picture: (M,) bool, images that have room to be shown; the others are dots.
    """

    method: str
    rows: np.ndarray
    centres: np.ndarray
    is_picture: np.ndarray


def map_embeddings(
    embeddings: np.ndarray, labels: np.ndarray, seed: int = 0
) -> EmbeddingMap | None:
    """Lay out images so that similar ones are close: t-SNE, or UMAP where it is installed.

    Visualizing Data using t-SNE (van der Maaten & Hinton 2008),
    https://www.jmlr.org/papers/v9/vandermaaten08a.html, on the first 50 principal components of the
    embeddings (N, D) on the unit sphere. Of many classes 200 are drawn, of many images 2000.

    Returns None where there are fewer than 10 images, all alike, or of one dimension.
    """
    rows = choose_rows(labels, seed)
    unit = normalize(embeddings[rows].astype(np.float64))
    is_flat = unit.shape[1] < 2 or np.ptp(unit, axis=0).max() < 1e-6
    if len(rows) < MIN_IMAGES or is_flat:
        return None

    num_components = min(PCA_DIM, *unit.shape)
    components = PCA(num_components, random_state=seed).fit_transform(unit)
    try:
        from umap import UMAP
    except ImportError:
        perplexity = min(30.0, (len(rows) - 1) / 3)
        method, layout = "t-SNE", TSNE(perplexity=perplexity, init="pca", random_state=seed)
    else:
        num_neighbours = min(15, len(rows) - 1)
        method, layout = "UMAP", UMAP(n_neighbors=num_neighbours, n_jobs=1, random_state=seed)

    places = layout.fit_transform(components).astype(np.float64)
    low, span = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-9)
    room = np.array([WIDTH, HEIGHT]) - PICTURE
    centres = (places - low) / span * room + PICTURE / 2
    return EmbeddingMap(method, rows, centres, thin_out(centres, PICTURE, seed))


def choose_rows(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw at most 200 classes and at most 2000 images of them: rows, ascending."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))[:MAX_CLASSES]
    rows = rng.permutation(np.flatnonzero(np.isin(labels, classes)))[:MAX_IMAGES]
    return np.sort(rows)


def thin_out(centres: np.ndarray, size: float, seed: int = 0) -> np.ndarray:
    """Choose points whose squares of side `size` do not overlap, in random order: (M,) bool."""
    chosen: list[int] = []
    for point in np.random.default_rng(seed).permutation(len(centres)).tolist():
        if not (np.abs(centres[chosen] - centres[point]) < size).all(1).any():
            chosen.append(point)
    is_chosen = np.zeros(len(centres), dtype=bool)
    is_chosen[chosen] = True
    return is_chosen


def spread(places: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Move boxes of a width and height, centred at places (M, 2), so far that none overlaps.

    Each stays on the map, as near to its place as those before it leave room. Returns (M, 2).
    """
    box, edge = np.array(size), np.array(size) / 2
    rings = np.arange(1, 60)[:, None] * box.min() / 2
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    around = np.stack([rings * np.cos(angles), rings * np.sin(angles)], axis=2).reshape(-1, 2)
    steps = np.concatenate([np.zeros((1, 2)), around])

    moved = np.empty((0, 2))
    for place in places:
        candidates = np.clip(place + steps, edge, np.array([WIDTH, HEIGHT]) - edge)
        is_taken = (np.abs(candidates[:, None] - moved[None]) < box).all(2).any(1)
        moved = np.concatenate([moved, candidates[is_taken.argmin()][None]])
    return moved
