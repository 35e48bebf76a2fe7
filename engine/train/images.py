"""The images of a training: the cache of decoded ones, and those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metric_learning.common.log import log
from metric_learning.engine.options.parts import ReadingOptions
from metric_learning.engine.parallel.collectives import merge
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.signals import acting_signals
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.cache_build import open_cache
from metric_learning.reader.batches.loader import check_broken
from metric_learning.reader.sets.image_set import Decoding


def open_training_images(
    image_set: ImageSet, reading: ReadingOptions, decoding: Decoding
) -> ImageSet:
    """Return an image set with its images in --cache, built where it is not complete, if any."""
    if not reading.cache:
        return image_set
    with acting_signals():  # building may take long, and goes on where it was
        return open_cache(
            image_set,
            Path(reading.cache),
            reading.cache_size,
            decoding,
            num_workers=reading.num_workers,
            on_bad_image=reading.on_bad_image,
            log=log,
        )


class BrokenImages:
    """The distinct unreadable images of a run since it started or resumed; `log` gets each."""

    def __init__(self, image_set: ImageSet, log: Callable[[str], object]) -> None:
        self._image_set, self._log = image_set, log
        self._errors: dict[str, str] = {}

    def add(self, broken: dict[str, str]) -> None:
        """Note and log unreadable images, path -> error; ImageError where there are too many."""
        for path, error in broken.items():
            if path not in self._errors:
                self._errors[path] = error
                self._log(f"{error}: another image of its class is taken")
        check_broken(len(self._errors), len(self._image_set))

    def report(self, world: World) -> None:
        """Log those of the other ranks too, and how many there are; ImageError where too many."""
        self.add(merge(self._errors, world))
        if self._errors:
            self._log(f"broken: {len(self._errors)} of {len(self._image_set)} training images")
