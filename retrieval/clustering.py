"""How well k-means clusters of the embeddings agree with the classes."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import pair_confusion_matrix

from metric_learning.retrieval.inputs import checked
from metric_learning.retrieval.unit import unit_rows


def cluster_scores(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    iterations: int = 20,
    num_clusters: int | None = None,
) -> dict[str, float | int]:
    """Cluster the embeddings on the unit sphere by k-means and compare the clusters with classes.

    nmi: mutual information of cluster and class / mean of their entropies. f1: harmonic mean of
    precision and recall of the pairs of images that share a cluster, as those that share a class.
    Deep Metric Learning via Lifted Structured Feature Embedding (Song et al. 2016), section 6,
    https://arxiv.org/abs/1511.06452. ami, ari: mutual information and Rand index adjusted for
    chance; unlike nmi and f1 they stay near 0 for random clusters, however many.

    Args:
        embeddings: (N, D) float, any scale; normalised here.
        labels: (N,) integer.
        seed: of the first centres, which are random images.
        iterations: of k-means, at least 1, from one start.
        num_clusters: 1..N; None takes the number of classes.

    Returns:
        `nmi`, `ami`, `ari`, `f1` as fractions (ami and ari can be below 0) and `clusters`, in O(
        iterations N D clusters) time: minutes at 60,502 images and 11,316 clusters. A seed repeats
        them with one number of threads; clusters of scikit-learn, without faiss, differ.

    Raises:
        ValueError: a shape or number does not fit, or an embedding is not finite.
    """
    embeddings, labels = checked(embeddings, labels, "embeddings")
    if num_clusters is None:
        num_clusters = len(np.unique(labels))
    if not 1 <= num_clusters <= len(embeddings) or iterations < 1:
        raise ValueError(
            f"expected 1 to {len(embeddings)} clusters, one per image at most, and at least 1 "
            f"iteration, found {num_clusters} and {iterations}"
        )

    rows = unit_rows(embeddings).numpy()
    clusters = _kmeans(rows, num_clusters, iterations, seed)
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "f1": pair_f1(labels, clusters),
        "clusters": num_clusters,
    }


def pair_f1(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Compute the F1 score of "same cluster" as a guess of "same class", over all pairs of images.

    2 TP / (2 TP + FP + FN) of labels and clusters, (N,) integer each; 1 where no pair shares
    either, since none is wrong. O(N) memory.
    """
    (_, false_positives), (false_negatives, true_positives) = pair_confusion_matrix(
        labels, clusters
    )
    num_wrong = false_positives + false_negatives
    return float(2 * true_positives / (2 * true_positives + num_wrong)) if num_wrong else 1.0


def _kmeans(rows: np.ndarray, num_clusters: int, iterations: int, seed: int) -> np.ndarray:
    """Assign each of the rows (N, D) float32 to a cluster, (N,) int64."""
    try:
        import faiss
    except ImportError:
        kmeans = KMeans(
            num_clusters, init="random", n_init=1, max_iter=iterations, random_state=seed
        )
        clusters: np.ndarray = kmeans.fit_predict(rows)
        return clusters

    kmeans = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        nredo=1,
        seed=seed,
        min_points_per_centroid=1,  # classes are small: faiss warns below 39 images per cluster
        max_points_per_centroid=len(rows),  # faiss would leave out images above 256 per cluster
    )
    kmeans.train(rows)
    clusters = kmeans.assign(rows)[1]
    return clusters
