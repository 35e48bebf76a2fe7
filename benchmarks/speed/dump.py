"""Compare a dump of infer.py with the bare forward pass on the batches of the same reader.

OMP_NUM_THREADS=1 python -m benchmarks.speed.dump --num_images=1280 --rounds=5

All is measured in turns in one process; the model is loaded before. What counts is the share of the
images/s of `bare`: at least 0.95 is asked for in silence and 0.9 with the features printed, here
into a file. The CPU time of the main thread alone is what a GPU would wait for.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Rounds, clocks, seconds_of
from benchmarks.speed.reader import write_images
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.engine.embed.dump import dump_features
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.embedding import iterate_embeddings, load_images
from metric_learning.engine.options.evaluation import (
    DumpOptions,
    default_flags,
    settle_embedding,
)
from metric_learning.engine.parallel.world import World
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import list_plain_images

FLAGS = (
    Flag("model", str, "ResNet18", "network, with random weights"),
    Flag("num_images", positive, 1280, "JPEG files, drawn"),
    Flag("image_size", positive, 64, "pixels of a side of files and inputs"),
    Flag("batch_size", positive, 64, "images that the network takes at once"),
    Flag("rounds", positive, 5, "times that each is measured"),
)
JOBS = {
    "bare": "the reader's batches through the network, no more",
    "silent": "a dump with `--print_features=False`",
    "printed": "a dump with the features printed",
}


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each job took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        photos = Path(folder) / "photos"
        photos.mkdir()
        write_images(photos, flags.num_images, (flags.image_size, flags.image_size), 0)
        images = list_plain_images(photos)
        settings = default_flags(
            pretrained_model="random",
            model=flags.model,
            image_shape=(3, flags.image_size, flags.image_size),
            batch_size=flags.batch_size,
            num_workers=0,
            use_gpu=False,
        )
        embedder = Embedder.of(settle_embedding(settings, World(), is_quiet=True))

        def measure(name: str) -> dict[str, float]:
            started = time.thread_time()
            if name == "bare":
                found = measure_bare(embedder, images)
            else:
                found = measure_dump(Path(folder), embedder, images, name == "printed")
            return found | {"main_seconds": time.thread_time() - started}

        for name in JOBS:
            measure(name)
        rounds = common.in_turns(JOBS, flags.rounds, measure)
        conditions = (
            f"{flags.num_images:,} JPEG files of {flags.image_size} px, {flags.model}, batches of "
            f"{flags.batch_size}, {torch.get_num_threads()} thread(s); rounds in turns in one "
            "process after a warm-up, the median of their shares counts."
        )
        print(table(rounds, flags.num_images))
        print(common.notes("dump", argv, conditions, rounds, JOBS), sep="\n\n")
        return rounds


def measure_bare(embedder: Embedder, images: ImageSet) -> dict[str, float]:
    """Measure the forward pass on the batches of the reader."""
    work = embedder.work
    started = clocks()
    loader = load_images(images, embedder.preprocessing, work.machine, work.batch_size)
    batches = iterate_embeddings(embedder.model, loader, embedder.preprocessing, work.machine)
    assert sum(len(batch) for batch in batches) == len(images)
    return seconds_of(clocks() - started)


def measure_dump(
    folder: Path, embedder: Embedder, images: ImageSet, prints: bool
) -> dict[str, float]:
    """Measure a dump from its first look at the images to its last file."""
    options = DumpOptions(None, prints, "float32", False, False)
    with (folder / "lines.txt").open("w") as lines, contextlib.redirect_stdout(lines):
        started = clocks()
        dump_features(folder / "dump", embedder, images, "error", options)
        return seconds_of(clocks() - started)


def table(rounds: Rounds, num_images: int) -> str:
    """Return the Markdown table: a row per job, its rates and its share of those of `bare`."""
    rows = []

    for name, found in rounds.items():
        cells = [name]
        for clock in ("wall_seconds", "cpu_seconds"):
            pairs = zip(rounds["bare"], found, strict=True)
            shares = sorted(bare[clock] / own[clock] for bare, own in pairs)
            rates = sorted(num_images / own[clock] for own in found)
            middle = len(shares) // 2
            cells += [f"{rates[middle]:,.0f}", f"{shares[middle]:.3f}"]
        for clock in ("cpu_seconds", "main_seconds"):
            cells.append(common.values_of(found, clock, 2))
        rows.append([*cells, common.values_of(found, "wall_seconds", 2)])
    clocked = ("images/s", "share of bare", "images per CPU second", "share of bare's")
    seconds = ("CPU s of each round", "of the main thread", "wall clock of each round")
    return common.markdown(("job", *clocked, *seconds), rows)


if __name__ == "__main__":
    main()
