"""Models by their weights file, for programs in Python."""

from __future__ import annotations

from os import PathLike

from metric_learning.engine.embed.embedder import Embedder, load_embedder
from metric_learning.engine.options.evaluation import default_flags, settle_embedding
from metric_learning.engine.parallel.world import World
from metric_learning.reader.sets.image_set import MAX_PIXELS


def load(
    file: str | PathLike[str],
    *,
    device: str = "auto",
    batch_size: int = 50,
    num_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    tta_flip: bool = False,
    tta_scales: tuple[float, ...] = (),
) -> Embedder:
    """Load a model with its weights and its image pipeline.

    Args:
        file: a checkpoint of a training, or weights that infer.py --export wrote.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 and so on.
        batch_size: images that the network takes at once.
        num_workers: processes that read images; 0: this one alone.
        max_pixels: most pixels of an image file, in millions.
        tta_flip: average the embedding of an image with that of its mirror image.
        tta_scales: scales of an image whose embeddings are averaged; empty: it is as it is.

    Raises:
        ValueError: the file holds no weights, or does not say of which model.
        OSError: it cannot be read.
    """
    given = {"pretrained_model": str(file), "device": device, "max_pixels": max_pixels}
    views = {"tta_flip": tta_flip, "tta_scales": tuple(tta_scales)}
    flags = default_flags(**given, **views, batch_size=batch_size, num_workers=num_workers)
    options = settle_embedding(flags, World(), is_quiet=True)
    if not options.meta:
        raise ValueError(
            f"{file} does not say of which model it holds the weights: expected a checkpoint of a "
            "training; `metric-learning fetch-weights --convert` makes one of weights of others"
        )
    return load_embedder(options)
