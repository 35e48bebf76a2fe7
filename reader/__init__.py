"""Data sets: the index of images and labels of a split, samplers, transforms and loaders."""

from metric_learning.reader.batches.loader import WorkerError
from metric_learning.reader.sets.datasets import DATASETS, load_index
from metric_learning.reader.sets.image_set import ImageError, ImageSet

__all__ = ["DATASETS", "ImageError", "ImageSet", "WorkerError", "load_index"]
