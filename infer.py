"""Dump the features of images, and the class scores where the checkpoint has a class layer.

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --images=photos/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.cli import user_errors
from engine.devices import choose_amp, choose_device
from engine.flags import DATA_FLAGS, MACHINE_FLAGS, MODEL_FLAGS, with_defaults
from engine.inference import (
    DATA_SET_FLAGS,
    Embedder,
    load_embedder,
    load_split,
    refuse_flags,
)
from engine.parsing import Flag, parse_flags, path, positive
from engine.run import log, versions
from models.atomic import write_atomically
from reader import Index
from reader.images import index_images
from reader.loader import eval_loader
from retrieval import iterate_embeddings

FLAGS = (
    *MODEL_FLAGS,
    Flag("batch_size", positive, 1, "images per batch"),
    Flag("images", path, None, "an image or a folder of images, instead of a data set"),
    Flag("split", str, "test", "split of the data set", ("test", "train")),
    Flag("output_dir", path, "features", "folder for features.npy, paths.txt and so on"),
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)


def main(argv: Sequence[str] | None = None) -> Path:
    """Dump the features and return their folder."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        if args.images is not None:
            unused = ("dataset", "split", *DATA_SET_FLAGS)
            refuse_flags(given, unused, "--images is used instead of a data set")
        device = choose_device(args, log)
        embedder = load_embedder(args, given, device)
        log(embedder.source)
        index = index_images(args.images) if args.images else load_split(args, args.split)
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
            embedder.model, loader, device, choose_amp(args.amp, device)
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


def write_dump(folder: Path, features: np.ndarray, index: Index, meta: dict[str, Any]) -> None:
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
        write_atomically(folder / name, partial(_save_text, text))


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _save_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
