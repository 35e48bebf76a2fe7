"""Data sets: the index of images and labels of a split, samplers, transforms and loaders."""

from reader.datasets import DATASETS, load_index
from reader.index import ImageError, Index
from reader.loader import WorkerError

__all__ = ["DATASETS", "ImageError", "Index", "WorkerError", "load_index"]
