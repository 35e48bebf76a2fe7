"""The sections of the check, in the order in which they start."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A section: the function of its name in a module of benchmarks.gpu; its limit in seconds."""

    module: str
    limit: int
    does: str
    is_alone: bool = False  # it measures speed, and nothing runs beside it
    needs_images: bool = True  # of the section `data`


SECTIONS = {
    "data": Entry("images", 80, "draws the images", False, False),
    "stages": Entry("training", 165, "both stages in every way of the GPU; eval and infer"),
    "compiled": Entry("training", 165, "--compile=True: seconds, graphs and breaks"),
    "losses": Entry("losses", 150, "every loss against the CPU", False, False),
    "tests": Entry("machine", 150, "the project's own tests of GPUs", False, False),
    "nvjpeg": Entry("images", 120, "decoding on the device: kinds of files, races"),
    "two_ranks": Entry("processes", 130, "two processes against one"),
    "resume": Entry("training", 110, "from the CPU to the GPU and back"),
    "nccl": Entry("processes", 100, "every collective, in a world of one process"),
    "syncs": Entry("training", 90, "where the host waits for the GPU in a step"),
    "precision": Entry("machine", 60, "features beside those of the CPU", False, False),
    "env": Entry("machine", 40, "versions, card and switches", False, False),
    "ceilings": Entry("machine", 20, "products, memory and copies", True, False),
    "train_speed": Entry("speed", 135, "images per second, and what costs", True),
    "retrieval": Entry("retrieval", 80, "exact ranks of 60,502 images", True, False),
    "extraction": Entry("speed", 40, "embeddings of JPEG files per second", True),
    "big_batch": Entry("training", 50, "gradient caching, 4096 images", True),
    "loss_speed": Entry("losses", 30, "milliseconds of every loss", True, False),
}
