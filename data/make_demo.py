"""Draws the demo data set: product-like classes in the layout of Stanford Online Products.

python data/make_demo.py [--dir=data/demo] [--num_classes=100] [--views=8] [--size=96] [--seed=0]

Every class is a product with a form, parts, a pattern and colours of its own; every view shows it
in another pose, place, size and light, amid clutter and at times partly hidden.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path
from metric_learning.common.log import show
from metric_learning.common.outputs import Kind, prepare_folder, replaced_folder
from metric_learning.data.draw.drawn_set import find_foreign, is_made_of, write_lists
from metric_learning.data.draw.products import KINDS, Product, draw_product, draw_products
from metric_learning.data.draw.views import draw_view

MARKER = "demo.json"
_VERSION = 1  # raise it when the drawing changes, so that folders of older versions are redrawn


FLAGS = (
    Flag("dir", path, "data/demo", "folder to make"),
    Flag("num_classes", int, 100, "half train, half test"),
    Flag("views", int, 8, "images of each class"),
    Flag("size", int, 96, "side of the images in pixels"),
    Flag("seed", int, 0, "another seed, other products"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the data set unless it is there; returns the exit status."""
    with user_errors():
        args = parse_flags("Draw the demo data set.", FLAGS, argv)
        show(make_demo(args.dir, args.num_classes, args.views, args.size, args.seed))
    return 0


def make_demo(
    folder: str | Path = "data/demo",
    num_classes: int = 100,
    views: int = 8,
    size: int = 96,
    seed: int = 0,
) -> str:
    """Draw the data set into `folder`, which appears complete or not at all; return what was done.

    One made earlier with other arguments is replaced. The first half of the classes are for
    training. Raises ValueError where an argument is wrong, or the folder holds something else.
    """
    _check_arguments(num_classes, views, size, seed)
    folder = Path(folder)
    arguments = {"num_classes": num_classes, "views": views, "size": size, "seed": seed}
    arguments["version"] = _VERSION
    what = f"{num_classes} classes, {views} views each, {size} pixels, seed {seed}: {folder}"
    if is_made_of(folder, MARKER, arguments):
        return f"the demo data set is there already ({what})"

    prepare_folder("dir", folder, Kind("a demo data set", partial(find_foreign, marker=MARKER)))
    with replaced_folder(folder) as unfinished:
        lines = _write_images(unfinished, _draw_classes(num_classes, seed), arguments)
        half = len(lines) // 2
        halves = {"train": lines[:half], "test": lines[half:]}
        write_lists(unfinished, halves, MARKER, arguments)
    return f"drew the demo data set ({what})"


def _check_arguments(num_classes: int, views: int, size: int, seed: int) -> None:
    smallest = 2 * len(KINDS)
    if num_classes < smallest or num_classes % 2:
        raise ValueError(f"expected an even --num_classes of {smallest} or more, got {num_classes}")
    for name, value, low, high in (
        ("views", views, 2, 1000),
        ("size", size, 16, 1024),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise ValueError(f"expected --{name} between {low} and {high}, got {value}")


def _draw_classes(num_classes: int, seed: int) -> list[tuple[str, Product]]:
    """Return kind and product of every class; in both halves each kind has a run of class ids."""
    per_split = num_classes // 2
    kinds = [list(KINDS)[i * len(KINDS) // per_split] for i in range(per_split)] * 2
    products = {
        kind: draw_products(kinds.count(kind), np.random.default_rng([seed, number]))
        for number, kind in enumerate(KINDS)
    }
    return [(kind, products[kind].pop()) for kind in kinds]


def _write_images(folder: Path, classes: list[tuple[str, Product]], arguments: dict) -> list[str]:
    """Draw all images of all classes; returns their lines of the list files."""
    lines: list[str] = []
    for class_id, (kind, product) in enumerate(classes, start=1):
        (folder / f"{kind}_final").mkdir(exist_ok=True)
        picture = draw_product(kind, product, 2 * arguments["size"])
        super_class_id = list(KINDS).index(kind) + 1
        for view in range(arguments["views"]):
            path = f"{kind}_final/{class_id:06d}_{view}.JPG"
            image = draw_view(picture, np.random.default_rng([arguments["seed"], class_id, view]))
            image.save(folder / path, format="JPEG", quality=88)
            lines.append(f"{len(lines) + 1} {class_id} {super_class_id} {path}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
