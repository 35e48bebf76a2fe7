"""PCA whitening of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from metric_learning.retrieval.unit import unit_rows

SMALLEST_VARIANCE = 1e-10  # of the largest; a smaller one is rounding of float32, not a direction
CHUNK_ROWS = 2**13  # rows held in float64 at once


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map after which all directions of the embeddings vary equally."""

    mean: np.ndarray  # (D,) float64, of the unit embeddings that it was learned on
    # (D, E) float64, columns by descending variance, each divided by its standard deviation
    projection: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Whiten embeddings (N, D) of any scale into unit vectors (N, E) float32, or ValueError."""
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"expected embeddings of {len(self.mean)} dimensions, as the whitening was learned "
                f"on, found shape {features.shape}"
            )
        whitened = np.empty((len(features), self.projection.shape[1]), np.float32)
        for start in range(0, len(features), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            whitened[rows] = _unit64((_unit64(features[rows]) - self.mean) @ self.projection)
        return whitened


def fit_whitening(features: np.ndarray, dim: int | None = None) -> Whitening:
    """Learn PCA whitening, with a reduction of the dimension if wanted.

    Embeddings are put on the unit sphere, centred, rotated onto their principal axes and divided
    by the standard deviation along each; `apply` puts the result on the unit sphere again.
    Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening
    (Jegou & Chum 2012), https://inria.hal.science/hal-00722622. O(N D^2 + D^3) time.

    Args:
        features: (N, D) float embeddings of any scale, of a training split: whitening that is
            learned on the images that are evaluated has seen the test.
        dim: E, dimensions to keep; None keeps all in which the embeddings vary.

    Raises:
        ValueError: `dim` is below 1, above D or above N - 1, or the embeddings vary in fewer
            directions.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected embeddings (N, D) of 2 or more images, found {features.shape}")
    num_images, size = features.shape
    most = min(size, num_images - 1)
    if dim is not None and not 1 <= dim <= most:
        raise ValueError(
            f"whitening of {num_images} embeddings of {size} dimensions keeps 1 to {most} "
            f"dimensions, found {dim}: choose fewer or learn it on more images"
        )

    mean, covariance = _moments(features)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    num_varying = min(most, int((variances > SMALLEST_VARIANCE * variances[0]).sum()))
    kept = num_varying if dim is None else dim
    if kept > num_varying or num_varying == 0:
        raise ValueError(
            f"the embeddings vary in {num_varying} directions only, found dim = {kept}: "
            "choose fewer dimensions or other images"
        )
    return Whitening(mean, axes[:, :kept] / np.sqrt(variances[:kept]))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of the unit embeddings, in float64."""
    chunks = range(0, len(features), CHUNK_ROWS)
    mean = np.zeros(features.shape[1])
    for start in chunks:
        mean += _unit64(features[start : start + CHUNK_ROWS]).sum(0) / len(features)
    covariance = np.zeros((len(mean), len(mean)))
    for start in chunks:
        centred = _unit64(features[start : start + CHUNK_ROWS]) - mean
        covariance += centred.T @ centred / len(features)
    return mean, covariance


def _unit64(rows: np.ndarray) -> np.ndarray:
    return unit_rows(rows, torch.float64).numpy()
