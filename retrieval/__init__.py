"""Retrieval: exact ranks of embeddings, the metrics that follow from them, and search."""

from metric_learning.retrieval.metrics import evaluate, score_queries
from metric_learning.retrieval.search import nearest

__all__ = ["evaluate", "nearest", "score_queries"]
