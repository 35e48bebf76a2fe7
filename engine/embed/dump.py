"""The dump of infer.py: features of images in files, and the reference's lines on the screen."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metric_learning.common.atomic import write_atomically, write_text
from metric_learning.common.log import log, versions
from metric_learning.engine.embed.extract import iterate_embeddings
from metric_learning.engine.embed.inference import Embedder
from metric_learning.engine.parallel.devices import choose_amp
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.loader import eval_loader


def dump_features(
    args: Namespace, embedder: Embedder, index: ImageSet, device: torch.device
) -> Path:
    """Write the features of all images into --output_dir, print them, and return the folder."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "features.npy").exists():
        log(f"the features in {folder} will be replaced")
    loader = eval_loader(
        index,
        embedder.preprocessing,
        batch_size=args.batch_size,
        num_workers=min(args.num_workers, len(index) // args.batch_size),
        pin_memory=device.type == "cuda",
    )
    features = np.empty((len(index), embedder.model.embedding_size), np.float32)
    done = 0
    for embeddings in iterate_embeddings(
        embedder.model, loader, embedder.preprocessing, device, choose_amp(args.amp, device)
    ):
        features[done : done + len(embeddings)] = embeddings.cpu().numpy()
        print_lines(embedder, embeddings, done)
        done += len(embeddings)
    write_dump(folder, features, index, {"flags": vars(args), "checkpoint": embedder.meta})
    log(f"{len(index)} features of {features.shape[1]} dimensions in {folder}")
    return folder


@torch.inference_mode()
def print_lines(embedder: Embedder, embeddings: Tensor, start: int) -> None:
    """Print the reference's lines for a batch whose first image is number `start`."""
    features = embeddings.cpu().numpy()
    scores = None if embedder.class_layer is None else embedder.class_layer.class_scores(embeddings)
    for row, feature in enumerate(features):
        text = np.array2string(feature, max_line_width=10**9, separator=" ")
        print(f"Test-{start + row}-feature: {text}")
        if scores is not None:
            best = int(scores[row].argmax())
            print(f"Test-{start + row}-score: [{scores[row, best]:.6f}], class [{best}]")


def write_dump(folder: Path, features: np.ndarray, index: ImageSet, meta: dict[str, Any]) -> None:
    """Write features.npy (N, D), paths.txt, labels.txt where labels are known, and meta.json."""
    shape = {"images": features.shape[0], "dimensions": features.shape[1]}
    texts = {
        "paths.txt": "".join(f"{path}\n" for path in index.paths),
        "labels.txt": "".join(f"{label}\n" for label in index.labels),
        "meta.json": json.dumps({**shape, **meta, "versions": versions()}, indent=2) + "\n",
    }
    if not index.class_names:
        del texts["labels.txt"]
        (folder / "labels.txt").unlink(missing_ok=True)
    write_atomically(folder / "features.npy", partial(_save_array, features))
    for name, text in texts.items():
        write_text(folder / name, text)


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)
