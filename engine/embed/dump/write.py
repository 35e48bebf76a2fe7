"""Dumps the features of images: computed by all processes, kept at once, whole at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metric_learning.common.log import log
from metric_learning.engine.embed.dump.finish import complete, take_places
from metric_learning.engine.embed.dump.layout import META, PARTIAL
from metric_learning.engine.embed.dump.lines import Lines, Progress
from metric_learning.engine.embed.dump.partial import Journal, Partial
from metric_learning.engine.embed.dump.plan import make_plan
from metric_learning.engine.embed.dump.precision import describe_cost
from metric_learning.engine.embed.dump.work import compute_chunks
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import DumpOptions
from metric_learning.engine.parallel.collectives import decide_on_main, wait_for_all
from metric_learning.reader import ImageSet


def dump_features(
    folder: Path,
    embedder: Embedder,
    image_set: ImageSet,
    on_bad_image: str,
    options: DumpOptions,
) -> Path:
    """Write the features of all images into a folder, print them, and return the folder.

    All processes share the images, and the first one prints and finishes. What was computed stays
    in the folder, however the work ends, and the same command goes on with it. What `on_bad_image`
    leaves out, meta.json tells. Raises ValueError where a feature is not finite; names the image.
    """
    work = embedder.work
    world = work.machine.world
    if (folder / META).exists():
        work.say(f"the features in {folder} will be replaced")
    if len(image_set) == 0:
        raise ValueError("there is no image to embed: the data set is empty")

    partial = Partial(folder / PARTIAL, make_plan(embedder, image_set, options))
    lines = Lines(partial, options.print_features)
    with computed(partial, embedder, image_set, on_bad_image, lines):
        if world.is_main:
            finish(folder, embedder, image_set, partial)
    return folder


@contextlib.contextmanager
def computed(
    partial: Partial, embedder: Embedder, image_set: ImageSet, on_bad_image: str, lines: Lines
) -> Iterator[None]:
    """Have all rows of the work there, computed by all processes; it is held until all leave."""
    work = embedder.work
    world = work.machine.world
    held = partial.held() if world.is_main else contextlib.nullcontext()
    with held, contextlib.closing(lines):
        may_skip = on_bad_image == "skip"
        missing = decide_on_main(world, lambda: partial.open(image_set, may_skip))
        num_done = partial.plan.num_chunks - len(missing)
        if num_done:
            work.say(f"{num_done} of {partial.plan.num_chunks} parts of the work are there already")
        compute(embedder, image_set, partial, missing, on_bad_image, lines)
        wait_for_all(world)
        if world.is_main and not partial.is_complete:
            partial.poll()
            assert len(partial.done) == partial.plan.num_chunks
            lines.advance()
            lines.finish()

        yield
        wait_for_all(world)


def compute(
    embedder: Embedder,
    image_set: ImageSet,
    partial: Partial,
    missing: list[int],
    on_bad_image: str,
    lines: Lines,
) -> None:
    """Compute this process's share of the chunks that are missing, and keep it."""
    world = embedder.work.machine.world
    progress = Progress(partial)
    journal = Journal(partial, world.rank)
    own = missing[world.rank :: world.size]

    try:
        for chunk, values, states, broken in compute_chunks(
            embedder, image_set, partial, own, on_bad_image
        ):
            journal.add(chunk, values, states, broken)
            partial.done[chunk] = broken
            if world.is_main:
                partial.poll()
                lines.advance()
                progress.tell()
    finally:
        journal.sync()


def finish(folder: Path, embedder: Embedder, image_set: ImageSet, partial: Partial) -> None:
    """Make the dump complete, and let its files take their places."""
    about: dict[str, Any] = {
        "flags": dict(embedder.work.flags),
        "checkpoint": embedder.work.meta,
        "depends_on": embedder.depends_on,
    }

    is_new = not partial.is_complete
    meta = complete(partial, image_set, about)
    if is_new and partial.plan.exact is not None:
        log(describe_cost(partial, image_set, embedder.work.machine.device))
    take_places(folder, meta)
    log(f"{meta['images']} features of {meta['dimensions']} dimensions in {folder}")
