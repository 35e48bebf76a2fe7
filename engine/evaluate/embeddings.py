"""Where the embeddings of a split come from: the model, a file that keeps them, or a dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.fingerprint import Snapshot
from metric_learning.engine.embed.dump.given import take_whole_features
from metric_learning.engine.embed.embedder import Embedder, open_features
from metric_learning.engine.evaluate.origin import describe_origin
from metric_learning.reader import ImageSet


def find_embeddings(
    embedder: Embedder,
    image_set: ImageSet,
    features: str | None,
    *,
    needs_lengths: bool,
    verify: bool = False,
    is_kept: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return embeddings of N images, and what they depend on.

    Args:
        embedder: the model.
        image_set: N images.
        features: a folder of features that infer.py wrote, which are read; or a file to keep them
            in, which is reused where it holds them; None: they are computed.
        needs_lengths: whether a dump of features of length 1 will not do.
        verify: compare all images of a file by content.
        is_kept: whether the result is, so that it has to say what it depends on.

    Returns:
        (N, D) float32, and for a result that is kept what `describe_origin` tells.

    Raises:
        ValueError: the dump or the file is of others, or incomplete.
    """

    def origin_of(snapshot: Snapshot | None) -> dict[str, Any]:
        return describe_origin(embedder, image_set, snapshot) if is_kept else {}

    if features is None:
        origin = origin_of(None)  # the images are looked at before the work
        return embedder.embed(image_set), origin
    if Path(features).is_dir():
        taken, snapshot = take_whole_features(Path(features), embedder, image_set, needs_lengths)
        return taken, origin_of(snapshot)
    file = open_features(features, embedder, image_set, verify)
    embeddings = embedder.embed(image_set, file)
    return embeddings, origin_of(file.snapshot)
