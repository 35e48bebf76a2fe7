"""What every script says first of its images: which, how many, and what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence

from metric_learning.reader.sets.image_set import ImageSet


def describe_sets(image_sets: Sequence[ImageSet]) -> list[str]:
    """Describe image sets in lines for the log; what holds for several is said once."""
    lines = []
    for number, image_set in enumerate(image_sets):
        of_classes = f" of {image_set.num_classes} classes" if image_set.class_names else ""
        name = f"{image_set.name}, " if number == 0 and image_set.class_names else ""
        lines.append(f"{title_of(image_set)}: {name}{len(image_set)} images{of_classes}")
        lines += describe_choice(image_set)
    return list(dict.fromkeys(lines))


def describe_choice(image_set: ImageSet) -> list[str]:
    """Say which classes were chosen, what was read as the same, what is missing and left out."""
    lines = [*image_set.notes]
    if image_set.groups is not None:
        number = len(set(image_set.groups.tolist()) - {-1})
        lines.append(
            f"{title_of(image_set)}: {number} groups; images of a query's class and group do not "
            "count"
        )
    for faults, what in ((image_set.missing, "are not there"), (image_set.repeated, "come again")):
        if faults:
            lines.append(f"{title_of(image_set)}: {len(faults):,} images {what}")
    if image_set.left_out:
        lines.append(image_set.left_out.describe())
    return lines


def title_of(image_set: ImageSet) -> str:
    """Return what lines call an image set: its split, or "images" where nothing is known of it."""
    return image_set.split if image_set.class_names else image_set.name
