"""The dump of infer.py: features of images in files, and the reference's lines on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metric_learning.common.arrays import open_array
from metric_learning.common.atomic import write_json, write_text
from metric_learning.common.download import checksum_of
from metric_learning.common.log import log, show, versions
from metric_learning.common.names import to_line
from metric_learning.common.outputs import Kind, replaced_folder
from metric_learning.common.schema import read_json
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.embedding import (
    iterate_embeddings,
    load_images,
    readable_rows,
    refuse_not_finite,
)
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of

FEATURES, PATHS, LABELS, META = FILES = ("features.npy", "paths.txt", "labels.txt", "meta.json")


REPORT = "report"  # a folder that a report on the features may have been written to


def find_foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that no dump wrote there, or that was changed since."""
    names = sorted(path.name for path in folder.iterdir())
    if META not in names:
        return names[0]
    meta = read_json(folder / META, META)
    written = meta.get("files")
    if written is None:  # of an earlier version, which wrote labels for data sets alone
        has_labels = meta["flags"].get("images") is None
        written = dict.fromkeys(FILES if has_labels else FILES[:2])

    for name in names:
        digest = written.get(name)
        is_changed = digest is not None and digest != checksum_of(folder / name, "sha256")
        if name not in (META, REPORT) and (name not in written or is_changed):
            return name
    shape = open_array(folder / FEATURES, FEATURES).shape
    return None if shape == (meta["images"], meta["dimensions"]) else FEATURES


DUMP = Kind("a dump of features", find_foreign)


def dump_features(folder: Path, embedder: Embedder, image_set: ImageSet, on_bad_image: str) -> Path:
    """Write the features of all images into a folder, print them, and return the folder.

    What `on_bad_image` leaves out, meta.json tells. Raises ValueError, and writes nothing, where a
    feature is not finite; names the image.
    """
    if (folder / FEATURES).exists():
        log(f"the features in {folder} will be replaced")

    work, model, preprocessing = embedder.work, embedder.model, embedder.preprocessing
    images = snapshot_of(image_set).digest()  # of all, be they readable or not
    loader = load_images(
        image_set, preprocessing, work.machine, work.batch_size, on_bad_image=on_bad_image
    )
    features = np.empty((len(image_set), model.embedding_size), np.float32)
    done = num_shown = 0
    for embeddings in iterate_embeddings(model, loader, preprocessing, work.machine):
        part = slice(done, done + len(embeddings))
        features[part] = embeddings.cpu().numpy()
        paths = image_set.paths[part]
        refuse_not_finite(features[part], paths)
        is_read = torch.tensor([path not in loader.broken for path in paths])
        print_lines(embedder, embeddings[is_read.to(embeddings.device)], num_shown)
        done, num_shown = done + len(embeddings), num_shown + int(is_read.sum())

    rows = readable_rows(image_set, loader.broken)
    features, image_set = features[rows], image_set.select(rows)
    depends_on = {**embedder.depends_on, "images": images}
    meta = {"flags": dict(work.flags), "checkpoint": work.meta, "depends_on": depends_on}
    meta["broken"] = loader.broken
    write_dump(folder, features, image_set, meta)
    log(f"{len(image_set)} features of {features.shape[1]} dimensions in {folder}")
    return folder


@torch.inference_mode()
def print_lines(embedder: Embedder, embeddings: Tensor, start: int) -> None:
    """Print the reference's lines for a batch whose first image is number `start`."""
    features = embeddings.cpu().numpy()
    layer = embedder.class_layer
    scores = None if layer is None else layer.class_scores(embeddings).cpu().numpy()
    if scores is not None and not np.isfinite(scores).all():
        raise ValueError(f"{embedder.work.weights}: the class layer gives NaN or infinity")
    for row, feature in enumerate(features):
        text = np.array2string(feature, max_line_width=10**9, separator=" ")
        show(f"Test-{start + row}-feature: {text}")
        if scores is not None:
            best = int(scores[row].argmax())
            show(f"Test-{start + row}-score: [{scores[row, best]:.6f}], class [{best}]")


def write_dump(
    folder: Path, features: np.ndarray, image_set: ImageSet, meta: dict[str, Any]
) -> None:
    """Write a folder as a whole: features.npy (N, D), paths.txt, meta.json and, if known, labels.

    A path is a line, see `names.to_line`.
    """
    with replaced_folder(folder, keep=[REPORT]) as new:
        np.save(new / FEATURES, features)
        write_text(new / PATHS, "".join(f"{to_line(path)}\n" for path in image_set.paths))
        if image_set.class_names:
            write_text(new / LABELS, "".join(f"{label}\n" for label in image_set.labels))

        texts = [name for name in (PATHS, LABELS) if (new / name).exists()]
        written: dict[str, str | None] = {name: checksum_of(new / name, "sha256") for name in texts}
        about = {"images": features.shape[0], "dimensions": features.shape[1], **meta}
        about |= {"files": {FEATURES: None, **written}, "versions": versions()}
        write_json(new / META, about)
