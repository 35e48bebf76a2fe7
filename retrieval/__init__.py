"""Retrieval: exact ranks of embeddings, the metrics that follow from them, and search.

Metrics: metrics calls inputs (checks), ranks, scores (of each query) and ties, and takes means.
counting is what ranks and verification count similarities with. significance says how sure a
metric is, tables says of which classes; clustering and verification score without queries.

Search: search finds exact neighbours; indexes are kept in a file, of the kinds in index_kinds.
rerank, with reciprocal, changes similarities, and whitening embeddings, before either; unit puts
embeddings on the unit sphere for all of them.

report is an old name of `metric-learning report`.
"""

from metric_learning.retrieval.metrics import evaluate, score_queries
from metric_learning.retrieval.search import nearest

__all__ = ["evaluate", "nearest", "score_queries"]
