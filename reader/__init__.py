"""Data sets: their images and labels, how images are read, and batches of them.

sets/             what images there are: `load_image_set` opens a split of any data set
transforms.py     an image becomes a crop, uint8
augment.py        which crops a training takes, and what is done to them
preprocessing.py  which transform, size, mean and deviation a model has
batches/          which images a step takes, and the loaders that read them
check.py          python -m reader.check: reads every image and reports what is wrong
"""

from metric_learning.reader.sets.datasets import (
    DATASETS,
    load_image_set,
    load_index,
    splits_of,
)
from metric_learning.reader.sets.describe import describe_sets
from metric_learning.reader.sets.image_set import ImageError, ImageSet, WorkerError

__all__ = [
    "DATASETS",
    "ImageError",
    "ImageSet",
    "WorkerError",
    "describe_sets",
    "load_image_set",
    "load_index",
    "splits_of",
]
