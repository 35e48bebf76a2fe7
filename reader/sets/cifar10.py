"""CIFAR-10, as class folders of images or as the original batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metric_learning.common.array_pickle import load_array_pickle
from metric_learning.reader.sets.folders import find_divided, read_divided
from metric_learning.reader.sets.table import Table

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def read_cifar10(data_dir: Path, split: str) -> Table:
    """Read the original batches, or train/CLASS/* and test/CLASS/*."""
    for folder in (data_dir, data_dir / "cifar-10-batches-py"):
        if (folder / BATCHES[split][0]).is_file():
            return read_batches(folder, split)
    tree = find_divided(data_dir)
    if tree is None or split not in tree.walks:
        raise FileNotFoundError(f"no train/ and test/ folders or data_batch_1 in {data_dir}")
    return read_divided(tree, split)


def read_batches(folder: Path, split: str) -> Table:
    """Read the original batches of a split into memory."""
    names = BATCHES[split]
    batches = [read_batch(folder / name) for name in names]
    numbered = zip(names, batches, strict=True)
    paths = [f"{name}:{i:04d}" for name, (_, labels) in numbered for i in range(len(labels))]
    images, classes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Table(paths, classes, dict(enumerate(CLASS_NAMES)), images=images)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch: images (n, 32, 32, 3) uint8, labels (n,) int64; ValueError if it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        batch = load_array_pickle(path, encoding="bytes")
        pixels = np.asarray(batch[b"data"])
        labels = np.array(batch[b"labels"], dtype=np.int64)
    except OSError:
        raise
    except Exception as error:  # a broken pickle raises many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a CIFAR-10 batch: {reason}") from error

    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise ValueError(
            f"{path}: expected ({len(labels)}, 3072) uint8, found {pixels.shape} {pixels.dtype}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
        raise ValueError(f"{path}: expected labels 0-9, found {labels.min()}-{labels.max()}")

    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
