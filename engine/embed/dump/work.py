"""Computes the chunks of a dump that are missing: those of one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from metric_learning.common.fingerprint import Snapshot
from metric_learning.engine.embed.dump.partial import Broken, Partial, WorthlessError, look_at
from metric_learning.engine.embed.dump.plan import CLASSES, SCORES, Plan
from metric_learning.engine.embed.dump.precision import normalised, to_dtype
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.embedding import (
    iterate_embeddings,
    load_images,
    refuse_not_finite,
)
from metric_learning.engine.parallel.devices import HostCopy
from metric_learning.losses.classes import fixed_directions
from metric_learning.reader import ImageSet

Values = dict[str, np.ndarray]  # the rows of some images, by column
Done = tuple[int, Values, np.ndarray, Broken]  # a chunk, its rows, what its files were, see Journal


class Lookout:
    """Looks at the files of each chunk before they are read, so that a later change is noticed.

    It is one chunk ahead of the reader, in a thread.
    """

    def __init__(self, image_set: ImageSet, plan: Plan, chunks: Sequence[int]) -> None:
        self._image_set, self._plan = image_set, plan
        self._chunks = iter(chunks)
        self._thread = ThreadPoolExecutor(1)
        self._looks: dict[int, Future[Snapshot]] = {}
        self._look_ahead()

    def _look_ahead(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            rows = self._plan.chunk(chunk)
            self._looks[chunk] = self._thread.submit(look_at, self._image_set, rows)

    def __call__(self, rows: np.ndarray) -> None:
        """Return when the files of a batch, its rows (B,) int64, have been looked at."""
        chunk, offset = divmod(int(rows[0]), self._plan.chunk_size)
        if offset == 0:
            self._look_ahead()
            self._looks[chunk].result()

    def states(self, chunk: int) -> np.ndarray:
        """Return what was seen of a chunk's files, once."""
        return self._looks.pop(chunk).result().states

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


def compute_chunks(
    embedder: Embedder,
    image_set: ImageSet,
    partial: Partial,
    chunks: Sequence[int],
    on_bad_image: str,
) -> Iterator[Done]:
    """Yield what is to be kept of the images of these chunks, one chunk after the other.

    The network is given the batches that one process would give it, whole, so that the rows do not
    depend on who computes them.
    """
    plan, work = partial.plan, embedder.work
    if not chunks:
        return

    lookout = Lookout(image_set, plan, chunks)
    rows = np.concatenate([np.array(plan.chunk(chunk), np.int64) for chunk in chunks])
    loader = load_images(
        image_set,
        embedder.preprocessing,
        work.machine,
        plan.batch_size,
        rows,
        on_bad_image,
        before=lookout,
    )
    batches = iterate_values(
        embedder,
        iterate_embeddings(embedder.model, loader, embedder.preprocessing, work.machine),
        plan.num_scores,
    )

    try:
        for chunk in chunks:
            numbers = plan.chunk(chunk)
            values = as_planned(plan, take_rows(batches, numbers, image_set.paths))
            broken = [
                (number, name, loader.broken[name])
                for number in (numbers if loader.broken else ())
                if (name := image_set.name_of(number)) in loader.broken
            ]
            yield chunk, values, lookout.states(chunk), broken
    finally:
        lookout.close()


def take_rows(batches: Iterator[Values], numbers: range, paths: Sequence[str]) -> Values:
    """Put batches together to the rows of a chunk; ValueError where a feature is not finite."""
    parts: list[Values] = []
    place = numbers.start
    while place < numbers.stop:
        parts.append(next(batches))
        features = parts[-1]["features"]
        try:
            refuse_not_finite(features, paths[place : place + len(features)])
        except ValueError as error:
            raise WorthlessError(str(error)) from error
        place += len(features)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_planned(plan: Plan, values: Values) -> Values:
    """Return the rows of a chunk as they are kept, of features in float32 and all else."""
    features = normalised(values["features"]) if plan.normalize else values["features"]
    kept = {**values, **to_dtype(features, plan.columns[0].dtype.name)}
    return kept if plan.exact is None else {**kept, "exact": features}


@torch.inference_mode()
def iterate_values(
    embedder: Embedder, batches: Iterator[torch.Tensor], num_scores: int
) -> Iterator[Values]:
    """Yield features (B, D) of each batch and, if asked for, so many best classes (B, K).

    Each when the work for the next batch is in the device's queue.
    """
    layer = embedder.class_layer
    pending: dict[str, HostCopy] | None = None
    with fixed_directions(layer) if num_scores else contextlib.nullcontext():
        for embeddings in batches:
            values = {"features": embeddings}
            if num_scores:
                values |= best_classes(layer.class_scores(embeddings), num_scores)
            copies = {name: HostCopy(rows) for name, rows in values.items()}
            if pending is not None:
                yield to_values(embedder, pending)
            pending = copies

        if pending is not None:
            yield to_values(embedder, pending)


def best_classes(scores: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Return the best scores (B, K) of all (B, C), highest first, and their classes.

    Of equal scores the class of the lower number comes first.
    """
    best, classes = scores.float().topk(count, sorted=False)
    classes, order = classes.sort(1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return {SCORES: best, CLASSES: classes.gather(1, order)}


def to_values(embedder: Embedder, copies: dict[str, HostCopy]) -> Values:
    """Return the rows of a batch by column; ValueError where a score is not finite."""
    values = {name: copy.numpy() for name, copy in copies.items()}
    if not np.isfinite(values.get(SCORES, 0)).all():
        raise WorthlessError(f"{embedder.work.weights}: the class layer gives NaN or infinity")
    return values
