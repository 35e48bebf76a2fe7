"""Retrieval: features of a whole data set, exact ranks, and the metrics that follow from them."""

from retrieval.extract import extract, iterate_embeddings
from retrieval.metrics import evaluate, score_queries
from retrieval.search import nearest

__all__ = ["evaluate", "extract", "iterate_embeddings", "nearest", "score_queries"]
