"""Draws a data set of characters in typefaces, in the layout of Stanford Online Products.

python data/make_glyphs.py [--dir=data/glyphs] [--kanji] [--images=59551] [--size=32] [--seed=0]

It has the shape of that set, which cannot be drawn: very many classes of few images. A class is a
character, its images show it in typefaces of different families. Half of the characters are for
training, the others for the test. By default they are the 11,172 syllables of Korean, 5,586 in
each half, with ten or eleven images each; with --kanji 11,464 Chinese characters come to them, so
that a half has 11,318 classes of five or six images.

The typefaces are those that are installed. On Debian:

apt-get install fonts-nanum fonts-nanum-extra fonts-unfonts-core fonts-unfonts-extra fonts-baekmuk
    fonts-alee fonts-woowa-bm fonts-noto-cjk fonts-noto-cjk-extra
and for --kanji fonts-arphic-ukai fonts-arphic-uming fonts-wqy-zenhei fonts-wqy-microhei
    fonts-hanazono fonts-babelstone-han fonts-lxgw-wenkai fonts-cns11643-kai fonts-cns11643-sung

Images of characters are yours to use as the licences of these typefaces allow; they are in
/usr/share/doc/PACKAGE/copyright (OFL for most).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import features
from tqdm import tqdm

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import (
    Flag,
    boolean,
    natural,
    parse_flags,
    path,
    positive,
)
from metric_learning.common.log import show
from metric_learning.common.outputs import Kind, prepare_folder, replaced_folder
from metric_learning.data.draw.drawn_set import find_foreign, is_made_of, write_lists
from metric_learning.data.draw.glyphs import Face, choose_faces, draw_glyph, find_faces

MARKER = "glyphs.json"
_VERSION = 1  # raise it when the drawing changes, so that folders of older versions are redrawn
IMAGES = 59551  # of Stanford Online Products' training half
SYLLABLES = range(0xAC00, 0xD7A4)  # of Korean
KANJI, NUM_KANJI = range(0x4E00, 0xA000), 11464  # as many as SOP's 11,318 classes in a half take
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
PACKAGES = "fonts-nanum fonts-nanum-extra fonts-unfonts-core fonts-unfonts-extra fonts-noto-cjk"
# Consonants that Korean syllables begin with, in the order of their numbers: the super classes.
INITIALS = (
    *("g", "kk", "n", "d", "tt", "r", "m", "b", "pp", "s"),
    *("ss", "silent", "j", "jj", "ch", "k", "t", "p", "h"),
)
MEDIALS_AND_FINALS = 588
_FACES_STREAM, _IMAGE_STREAM = 0, 1
Item = TypeVar("Item")
Result = TypeVar("Result")

FLAGS = (
    Flag("dir", path, "data/glyphs", "folder to make"),
    Flag("kanji", boolean, False, "11,464 Chinese characters beside the Korean syllables"),
    Flag("characters", str, None, "draw these instead, such as ABCDEFGH: a class each"),
    Flag("images", positive, IMAGES, "images of each half, in all"),
    Flag("size", positive, 32, "side of the images in pixels"),
    Flag("seed", natural, 0, "of the halves, the typefaces and the drawing"),
    Flag("fonts", path, None, "folder of font files; default: where the system has them"),
    Flag("num_workers", natural, None, "processes that draw; default: one per core; 0: this one"),
)


class Job(NamedTuple):
    """What all drawings have in common."""

    faces: list[Face]
    size: int
    seed: int
    num_workers: int


class GlyphClass(NamedTuple):
    """A class: its number, its character, and the faces of its images."""

    number: int
    character: str
    faces: list[Face]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the data set unless it is there; returns the exit status."""
    with user_errors():
        args = parse_flags("Draw a data set of characters in typefaces.", FLAGS, argv)
        if args.characters is not None:
            args.refuse(["kanji"], "--characters are all that is drawn")

        workers = args.num_workers
        show(
            make_glyphs(
                args.dir,
                args.characters,
                kanji=args.kanji,
                images=args.images,
                size=args.size,
                seed=args.seed,
                fonts=args.fonts,
                num_workers=(os.cpu_count() or 1) if workers is None else workers,
            )
        )
    return 0


def make_glyphs(
    folder: str | Path = "data/glyphs",
    characters: str | None = None,
    *,
    kanji: bool = False,
    images: int = IMAGES,
    size: int = 32,
    seed: int = 0,
    fonts: str | Path | None = None,
    num_workers: int = 0,
) -> str:
    """Draw the data set into `folder`, which appears complete or not at all; return what was done.

    One made earlier with other arguments or typefaces is replaced. Raises ValueError where an
    argument is wrong, typefaces lack, or the folder holds something else.
    """
    folder, text = Path(folder), "".join(dict.fromkeys(characters or map(chr, SYLLABLES)))
    half = len(text) // 2 + (NUM_KANJI // 2 if kanji else 0)
    _check_arguments(len(text), half, images, size)
    places = [fonts] if fonts else [Path(place).expanduser() for place in FONT_FOLDERS]
    faces = find_faces([Path(place) for place in places])
    arguments = {"characters": text if characters else None, "kanji": kanji, "images": images}
    arguments |= {"size": size, "seed": seed, "version": _VERSION, "typefaces": _digest(faces)}
    what = f"{2 * half} classes, {images} images in a half, {size} pixels, seed {seed}: {folder}"
    if is_made_of(folder, MARKER, arguments):
        return f"the glyphs are there already ({what})"

    prepare_folder(
        "dir", folder, Kind("a data set of glyphs", partial(find_foreign, marker=MARKER))
    )
    job = Job(faces, size, seed, num_workers)
    classes = choose_classes(job, text, half, images, kanji)
    with replaced_folder(folder) as unfinished:
        for name in sorted({super_class(each.character)[1] for each in classes}):
            (unfinished / f"{name}_final").mkdir()
        drawn = run(partial(_draw_class, job, unfinished), classes, num_workers, "drawing")
        halves = {"train": drawn[:half], "test": drawn[half:]}
        lines = {split: _numbered(part) for split, part in halves.items()}
        write_lists(unfinished, lines, MARKER, arguments)

    families = {face.family for each in classes for face in each.faces}
    return f"drew the glyphs, in typefaces of {len(families)} families ({what})"


def _numbered(classes: Iterable[Iterable[str]]) -> list[str]:
    """Number the rows of the images of all classes, from 1 on."""
    rows = [row for rows in classes for row in rows]
    return [f"{number} {row}" for number, row in enumerate(rows, start=1)]


def _check_arguments(num_characters: int, half: int, images: int, size: int) -> None:
    if num_characters < 4 or num_characters % 2:
        raise ValueError(
            "expected --characters of an even number of 4 or more different ones, got "
            f"{num_characters}"
        )
    if images < 2 * half:
        raise ValueError(
            f"expected --images of {2 * half} or more, two for each of the {half} classes of a "
            f"half, got {images}"
        )
    if not 16 <= size <= 512:
        raise ValueError(f"expected --size between 16 and 512, got {size}")


def _digest(faces: Iterable[Face]) -> str:
    """Identify what draws: the files of typefaces, and the library."""
    files = sorted({(Path(face.file).name, os.stat(face.file).st_size) for face in faces})
    text = json.dumps([files, features.version("freetype2")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose_classes(job: Job, text: str, half: int, images: int, kanji: bool) -> list[GlyphClass]:
    """Draw the classes of both halves, those for training first, and the faces of each.

    Raises ValueError where typefaces of too few families have a character, or enough characters.
    """
    rng = np.random.default_rng(job.seed)
    smallest, num_larger = divmod(images, half)
    most = smallest + (num_larger > 0)
    choose = partial(_faces_of_class, job, most)
    own = [chr(code) for code in rng.permutation([ord(character) for character in text])]
    _check_faces([(own[0], choose(own[0]))], most)  # before the work, where there is none
    pairs = list(zip(own, run(choose, own, job.num_workers, "typefaces"), strict=True))
    _check_faces(pairs, most)
    if kanji:
        pairs += _choose_kanji(job, most, rng)

    pairs = [pairs[number] for number in rng.permutation(len(pairs))]
    counts = [smallest + (number % half < num_larger) for number in range(len(pairs))]
    return [
        GlyphClass(number, character, faces[:count])
        for number, ((character, faces), count) in enumerate(
            zip(pairs, counts, strict=True), start=1
        )
    ]


def _check_faces(pairs: Iterable[tuple[str, list[Face]]], count: int) -> None:
    """Raise ValueError where a character has fewer faces."""
    character, faces = min(pairs, key=lambda pair: len(pair[1]))
    if len(faces) < count:
        raise ValueError(
            f"typefaces of {len(faces)} families have U+{ord(character):04X} ({character}), "
            f"{count} are needed: install more, on Debian apt-get install {PACKAGES}, give "
            "--fonts=FOLDER, or fewer --images"
        )


def _choose_kanji(job: Job, count: int, rng: np.random.Generator) -> list[tuple[str, list[Face]]]:
    """Draw NUM_KANJI Chinese characters of which enough families have a glyph, and their faces."""
    candidates = [chr(code) for code in rng.permutation(KANJI)]
    found = run(partial(_faces_of_class, job, count), candidates, job.num_workers, "kanji")
    able = [pair for pair in zip(candidates, found, strict=True) if len(pair[1]) == count]
    if len(able) < NUM_KANJI:
        raise ValueError(
            f"typefaces of {count} families have {len(able)} Chinese characters, --kanji takes "
            f"{NUM_KANJI}: install more, on Debian apt-get install fonts-noto-cjk "
            "fonts-arphic-ukai fonts-arphic-uming fonts-wqy-zenhei fonts-babelstone-han"
        )
    return able[:NUM_KANJI]


def _faces_of_class(job: Job, count: int, character: str) -> list[Face]:
    rng = np.random.default_rng([_FACES_STREAM, job.seed, ord(character)])
    return choose_faces(job.faces, character, count, rng)


def run(
    work: Callable[[Item], Result], items: Sequence[Item], num_workers: int, what: str
) -> list[Result]:
    """Do work on items in so many processes, 0: in this one; the results are in their order."""
    progress = partial(tqdm, total=len(items), desc=what, disable=None, leave=False)
    if num_workers == 0:
        return list(progress(map(work, items)))
    with ProcessPoolExecutor(num_workers) as pool:
        return list(progress(pool.map(work, items, chunksize=32)))


def super_class(character: str) -> tuple[int, str]:
    """Return number and name of a character's super class.

    The consonant that a Korean syllable begins with, or the 1024 code points around another one,
    which for Chinese characters are those of neighbouring radicals.
    """
    code = ord(character)
    if code in SYLLABLES:
        number = (code - SYLLABLES.start) // MEDIALS_AND_FINALS
        return 1 + number, INITIALS[number]
    return 100 + (code >> 10), f"u{code >> 10:02x}"


def _draw_class(job: Job, folder: Path, each: GlyphClass) -> list[str]:
    """Draw the images of a class; returns their rows of the list files, but for the numbers."""
    number, name = super_class(each.character)
    rows = []
    for view, face in enumerate(each.faces):
        rng = np.random.default_rng([_IMAGE_STREAM, job.seed, ord(each.character), view])
        file = f"{name}_final/{each.number:06d}_{view}.JPG"
        image = draw_glyph(face, each.character, job.size, rng)
        image.save(folder / file, format="JPEG", quality=92)
        rows.append(f"{each.number} {number} {file}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
