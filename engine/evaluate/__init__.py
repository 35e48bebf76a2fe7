"""Scores of a split: retrieval, classification, comparisons."""
