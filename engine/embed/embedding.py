"""The embeddings of an image set: every image exactly once, in its order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from metric_learning.common.log import log as log_line
from metric_learning.common.names import to_line
from metric_learning.engine.embed.features import FeatureFile, FeatureWriter
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.collectives import decide_on_main, gather_rows, wait_for_all
from metric_learning.engine.parallel.devices import casting, to_host
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.lines import duration
from metric_learning.engine.run.signals import StopRequest
from metric_learning.models import EmbeddingModel
from metric_learning.reader import ImageError, ImageSet
from metric_learning.reader.batches.loader import ImageLoader, eval_loader, to_inputs
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.retrieval.inputs import first_not_finite


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and give every module its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def embed_images(
    model: EmbeddingModel,
    image_set: ImageSet,
    preprocessing: Preprocessing,
    machine: MachineOptions,
    batch_size: int,
    *,
    features: FeatureFile | None = None,
    log: Callable[[str], object] | None = None,
    log_every: int = 10,
    stop: StopRequest | None = None,
    broken: dict[str, str] | None = None,
) -> np.ndarray:
    """Embed every image once, shared among all ranks: (N, D) float32 in the order of the set.

    Rows that the file `features` holds are not computed again, and the result is mapped from it.
    `log` receives the line `testbatch N, time S sec, eta H:MM:SS` every `log_every` batches, if not
    0. `stop` breaks off, with Stopped on all ranks, where the training that this is part of is to
    stop. An unreadable image is an error or, where one process is alone, noted in `broken`, path ->
    error; its row means nothing.

    Raises ValueError where there is no image, or an embedding is not finite.
    """
    assert features is None or stop is None
    if len(image_set) == 0:
        raise ValueError("there is no image to embed: the data set is empty")

    world = machine.world
    missing = np.arange(len(image_set)) if features is None else missing_rows(features, world, log)
    own = missing[world.rank :: world.size]
    on_bad_image = "error" if broken is None else "skip"
    loader = load_images(image_set, preprocessing, machine, batch_size, own, on_bad_image)
    work = logged(model, loader, preprocessing, machine, log, log_every)
    if features is None:
        with stop.agreement() if stop else contextlib.nullcontext():
            rows = collect_rows(work, (len(own), model.embedding_size), stop)
        embeddings = gather_rows(rows, world, machine.device)
    else:
        embeddings = keep_rows(work, features, own, world)
    if broken is not None:
        broken.update(loader.broken)
    refuse_not_finite(embeddings, image_set.paths)
    return embeddings


def refuse_not_finite(embeddings: np.ndarray, paths: Sequence[str]) -> None:
    """Raise ValueError, which names the first image, where an embedding (N, D) is not finite."""
    wrong = first_not_finite(embeddings)
    if wrong is not None:
        raise ValueError(
            f"the embedding of {to_line(paths[wrong])} holds NaN or infinity: the model diverged"
        )


def readable_rows(image_set: ImageSet, broken: Mapping[str, str]) -> np.ndarray:
    """Return the rows of the images that are not broken, path -> error, and list those that are.

    Raises ImageError where none is left.
    """
    for error in broken.values():
        log_line(f"{error}: left out")
    names = map(image_set.name_of, range(len(image_set)))
    rows = np.array([n for n, name in enumerate(names) if name not in broken], np.int64)
    if broken:
        num_broken = len(image_set) - len(rows)
        log_line(f"warning: {num_broken} of {len(image_set)} images are unreadable and left out")
    if len(rows) == 0:
        raise ImageError(f"none of the {len(image_set)} images can be read")
    return rows


def missing_rows(
    features: FeatureFile, world: World, log: Callable[[str], object] | None
) -> np.ndarray:
    """Return the rows that a feature file lacks, one list for all ranks, and say what it holds."""
    missing = decide_on_main(world, features.prepare)  # before the first rank writes to it
    for note in features.notes:
        if log is not None:
            log(note)
    found = features.shape[0] - len(missing)
    if log is not None and found:
        log(f"{found} of {features.shape[0]} features are in {features.path}")
    return missing


def load_images(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    machine: MachineOptions,
    batch_size: int,
    rows: np.ndarray | None = None,
    on_bad_image: str = "error",
    before: Callable[[np.ndarray], object] | None = None,
) -> ImageLoader:
    """Return the batches of an image set, or of some of its rows, in order; see `eval_loader`."""
    count = len(image_set) if rows is None else len(rows)
    return eval_loader(
        image_set,
        preprocessing,
        batch_size=batch_size,
        num_workers=min(machine.num_workers, count // batch_size),
        pin_memory=machine.device.type == "cuda",
        indices=rows,
        on_bad_image=on_bad_image,
        before=before,
    )


@torch.inference_mode()
def iterate_embeddings(
    model: nn.Module,
    loader: ImageLoader,
    preprocessing: Preprocessing,
    machine: MachineOptions,
) -> Iterator[Tensor]:
    """Yield the embeddings of one batch after the other, (B, D) float32 on the device."""
    for batch in loader:
        images = to_inputs(batch, preprocessing, machine.device)  # Bx3xSxT
        with casting(machine.device, machine.amp_dtype, machine.tf32):
            embeddings = embed_views(model, images, preprocessing)
        yield embeddings


def embed_views(model: nn.Module, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the embeddings (B, D) float32 of test images (B, 3, S, T), the means of their views.

    Views are of the scales of --tta_scales, resized from the input, and with --tta_flip the mirror
    image of each. The mean is of raw embeddings: published code averages what its networks give,
    be it raw (insightface, of mirror images: recognition/arcface_torch/eval/verification.py) or
    normalised by the network itself (cirtorch, of scales: networks/imageretrievalnet.py), and class
    layers and Euclidean distances take it as they take one embedding.
    """
    views = []
    for scale in preprocessing.tta_scales or (1.0,):
        view = images
        if scale != 1:
            view = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        views.append(model(view).float())
        if preprocessing.tta_flip:
            views.append(model(view.flip(-1)).float())
    return views[0] if len(views) == 1 else torch.stack(views).mean(0)


def logged(
    model: nn.Module,
    loader: ImageLoader,
    preprocessing: Preprocessing,
    machine: MachineOptions,
    log: Callable[[str], object] | None,
    log_every: int,
) -> Iterator[np.ndarray]:
    """Yield embeddings (B, D) in CPU memory, with a progress bar and the reference's log lines."""
    begun = started = time.perf_counter()
    with evaluation_mode(model):
        batches = to_host(iterate_embeddings(model, loader, preprocessing, machine))
        progress = tqdm(batches, total=len(loader), disable=None, unit="batch", leave=False)
        for number, embeddings in enumerate(progress, start=1):
            yield embeddings
            if log is not None and log_every and number % log_every == 0:
                now = time.perf_counter()
                left = (len(loader) - number) * (now - begun) / number
                seconds = (now - started) / log_every
                log(f"testbatch {number}, time {seconds:.2f} sec, eta {duration(left)}")
                started = now


def collect_rows(
    work: Iterator[np.ndarray], shape: tuple[int, int], stop: StopRequest | None
) -> np.ndarray:
    """Put embeddings together, (n, D) float32; a request to stop leaves out the rest."""
    rows = np.empty(shape, np.float32)
    done = 0
    with contextlib.closing(work):  # type: ignore[type-var]
        for embeddings in work:
            rows[done : done + len(embeddings)] = embeddings
            done += len(embeddings)
            if stop is not None and stop.received:
                break
    return rows


def keep_rows(
    work: Iterator[np.ndarray], features: FeatureFile, rows: np.ndarray, world: World
) -> np.ndarray:
    """Write embeddings to rows of a feature file, as they come, and map all it holds, (N, D)."""
    if len(rows):
        writer = FeatureWriter(features, rows)
        try:
            for embeddings in work:
                writer(embeddings)
        finally:
            writer.sync()
    wait_for_all(world)
    decide_on_main(world, features.finish)
    return features.read()
