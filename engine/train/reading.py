"""How a training reads its images: what the flags allow, the cache, and broken files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from metric_learning.common.log import log
from metric_learning.engine.embed.inference import refuse_flags
from metric_learning.engine.parallel.distributed import World, merge
from metric_learning.engine.run.signals import acting_signals
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.cache_build import open_cache
from metric_learning.reader.batches.loader import Batch, Reading, check_broken


def check_reading(args: Namespace, given: set[str], device: torch.device, index: ImageSet) -> None:
    """Check the flags of reading against each other, the device and the data set.

    Raises:
        ValueError: two of them contradict each other, or one would not be used.
    """
    if not args.cache:
        refuse_flags(given, ["cache_size"], "there is no --cache")
    if args.num_workers == 0:
        refuse_flags(given, ["prefetch"], "--num_workers=0 reads nothing ahead")
    if args.decode_on == "device":
        if device.type != "cuda":
            raise ValueError(
                f"--decode_on=device needs a CUDA GPU, this run is on {device}: leave it out"
            )
        if args.cache:
            raise ValueError(
                "expected --cache or --decode_on=device, found both: a cache holds decoded images"
            )
        if index.images is not None:
            raise ValueError(
                f"--decode_on=device is not used: the images of {args.dataset} are no files"
            )
        if args.on_bad_image == "skip":
            raise ValueError(
                "--on_bad_image=skip needs --decode_on=workers: on the device, a file shows itself "
                "broken when no other image can be drawn any more"
            )
        if "augment_on" in given and args.augment_on == "workers":
            raise ValueError("--decode_on=device augments there too: leave out --augment_on")
    if reading_of(args).hand_over != "crops" and args.transform != "standard":
        flag = "decode_on" if args.decode_on == "device" else "augment_on"
        raise ValueError(
            f"--{flag}=device needs --transform=standard, found {args.transform}, whose Lanczos "
            "resizing is done by the workers alone"
        )


def reading_of(args: Namespace) -> Reading:
    """Return what workers do with training images, as the flags say."""
    hand_over = "images" if args.augment_on == "device" else "crops"
    if args.decode_on == "device":
        hand_over = "files"
    return Reading(hand_over, args.on_bad_image, args.prefetch)


def open_training_images(args: Namespace, index: ImageSet) -> ImageSet:
    """Return the index with its images in --cache, built where it is not complete, if there is one.

    Raises:
        ValueError: the cache is damaged or of something else, or an image is broken.
        OSError: the disk is too small or the folder cannot be written.
    """
    if not args.cache:
        return index
    with acting_signals():  # building may take long, and goes on where it was
        return open_cache(
            index,
            Path(args.cache),
            args.cache_size,
            num_workers=args.num_workers,
            on_bad_image=args.on_bad_image,
            log=log,
        )


class BrokenImages:
    """The distinct unreadable images of a run since it started or resumed.

    Args:
        index: the training images.
        log: receives a line per image.
    """

    def __init__(self, index: ImageSet, log: Callable[[str], object]) -> None:
        self._index, self._log = index, log
        self._errors: dict[str, str] = {}

    def add(self, broken: dict[str, str]) -> None:
        """Note and log unreadable images, path -> error.

        Raises:
            ImageError: there are too many.
        """
        for path, error in broken.items():
            if path not in self._errors:
                self._errors[path] = error
                self._log(f"{error}: another image of its class is taken")
        check_broken(len(self._errors), len(self._index))

    def noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, and note their broken images.

        Raises:
            ImageError: there are too many.
        """
        for batch in batches:
            self.add(batch.broken)
            yield batch

    def report(self, world: World) -> None:
        """Log those of the other ranks too, and how many there are in all.

        Raises:
            ImageError: there are too many.
        """
        self.add(merge(self._errors, world))
        if self._errors:
            self._log(f"broken: {len(self._errors)} of {len(self._index)} training images")
