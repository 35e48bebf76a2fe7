"""The dump of infer.py: features of images in files, and the reference's lines on the screen."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metric_learning.common.atomic import write_atomically, write_text
from metric_learning.common.log import log, show, versions
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.embedding import iterate_embeddings, load_images, readable_rows
from metric_learning.reader import ImageSet


def dump_features(folder: Path, embedder: Embedder, image_set: ImageSet, on_bad_image: str) -> Path:
    """Write the features of all images into a folder, print them, and return the folder.

    What `on_bad_image` leaves out, meta.json tells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "features.npy").exists():
        log(f"the features in {folder} will be replaced")

    work, model, preprocessing = embedder.work, embedder.model, embedder.preprocessing
    loader = load_images(
        image_set, preprocessing, work.machine, work.batch_size, on_bad_image=on_bad_image
    )
    features = np.empty((len(image_set), model.embedding_size), np.float32)
    done = num_shown = 0
    for embeddings in iterate_embeddings(model, loader, preprocessing, work.machine):
        features[done : done + len(embeddings)] = embeddings.cpu().numpy()
        paths = image_set.paths[done : done + len(embeddings)]
        is_read = torch.tensor([path not in loader.broken for path in paths])
        print_lines(embedder, embeddings[is_read.to(embeddings.device)], num_shown)
        done, num_shown = done + len(embeddings), num_shown + int(is_read.sum())

    rows = readable_rows(image_set, loader.broken)
    features, image_set = features[rows], image_set.select(rows)
    meta = {"flags": dict(work.flags), "checkpoint": work.meta, "broken": loader.broken}
    write_dump(folder, features, image_set, meta)
    log(f"{len(image_set)} features of {features.shape[1]} dimensions in {folder}")
    return folder


@torch.inference_mode()
def print_lines(embedder: Embedder, embeddings: Tensor, start: int) -> None:
    """Print the reference's lines for a batch whose first image is number `start`."""
    features = embeddings.cpu().numpy()
    scores = None if embedder.class_layer is None else embedder.class_layer.class_scores(embeddings)
    for row, feature in enumerate(features):
        text = np.array2string(feature, max_line_width=10**9, separator=" ")
        show(f"Test-{start + row}-feature: {text}")
        if scores is not None:
            best = int(scores[row].argmax())
            show(f"Test-{start + row}-score: [{scores[row, best]:.6f}], class [{best}]")


def write_dump(
    folder: Path, features: np.ndarray, image_set: ImageSet, meta: dict[str, Any]
) -> None:
    """Write features.npy (N, D), paths.txt, labels.txt where labels are known, and meta.json."""
    shape = {"images": features.shape[0], "dimensions": features.shape[1]}
    texts = {
        "paths.txt": "".join(f"{path}\n" for path in image_set.paths),
        "labels.txt": "".join(f"{label}\n" for label in image_set.labels),
        "meta.json": json.dumps({**shape, **meta, "versions": versions()}, indent=2) + "\n",
    }
    if not image_set.class_names:
        del texts["labels.txt"]
        (folder / "labels.txt").unlink(missing_ok=True)
    write_atomically(folder / "features.npy", partial(_save_array, features))
    for name, text in texts.items():
        write_text(folder / name, text)


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)
