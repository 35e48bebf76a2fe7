"""Retrieval: exact ranks of embeddings, the metrics that follow from them, and search.

Begin at metrics: it has embeddings checked (inputs), ranks them, scores each query by its ranks
(scores; ties where images tie) and takes means.

- positives: which images are positives of which query, and their cosines.
- counting: the comparisons of all pairs that ranks and verification are made of.
- significance: how sure a metric is. tables: scores per class.
- verification, clustering: scores without queries.
- euclidean: distances of embeddings as they are, instead of cosines.
- search: exact neighbours. indexes: built once, kept in a file, of the kinds in index_kinds.
- near_pairs: all pairs above a cosine, which are near duplicates.
- rerank, reciprocal: similarities after a second pass. whitening: embeddings with equal variances.
- unit: embeddings on the unit sphere, for all of these.
- report: an old name of `metric-learning report`.
"""

from metric_learning.retrieval.metrics import evaluate, score_queries
from metric_learning.retrieval.search import nearest

__all__ = ["evaluate", "nearest", "score_queries"]
