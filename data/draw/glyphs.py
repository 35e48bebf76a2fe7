"""Characters in typefaces: which faces there are and have one, and an image of it in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
LOCALES = ("JP", "KR", "SC", "TC", "HK")  # the last word of names of one family
NO_CHARACTERS = "\uffff\U0010fffe"  # which no typeface has: it draws a box, or nothing
TESTED_SIZE = 24  # pixels of an em, at which a face is asked for a character
REDUCED = 3  # by which an image is reduced that is drawn larger
INK = 0.75  # an em, as a fraction of the side of an image
FITTING = 0.92  # most of the side that a character takes


class Face(NamedTuple):
    """A typeface: its file, its number in it, and the family that it belongs to."""

    file: str
    number: int
    family: str


def find_faces(folders: Sequence[Path]) -> list[Face]:
    """List the faces of all font files below folders, by the names of these files."""
    files = {
        file.name: file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    }
    return [face for _, file in sorted(files.items()) for face in _faces_of(file)]


def _faces_of(file: Path) -> Iterator[Face]:
    """Yield the faces of a file; a collection holds several."""
    number = 0
    while True:
        try:
            font = ImageFont.truetype(str(file), TESTED_SIZE, number)
        except OSError:  # no more of them, or no font
            return
        words = (font.getname()[0] or file.stem).split()
        yield Face(str(file), number, " ".join(words[:-1] if words[-1] in LOCALES else words))
        if file.suffix.lower() not in (".ttc", ".otc"):
            return
        number += 1


@cache
def _font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face.file, size, face.number, layout_engine=ImageFont.Layout.BASIC)


@cache
def _boxes(face: Face) -> list[bytes]:
    """What a face draws for a character that it does not have."""
    return [bytes(_font(face, TESTED_SIZE).getmask(character)) for character in NO_CHARACTERS]


def has_glyph(face: Face, character: str) -> bool:
    """Whether a face has ink for a character, and not the box that stands for what it lacks.

    Some typefaces stand in for others by a picture for each block of Unicode: they draw the next
    character alike.
    """
    font = _font(face, TESTED_SIZE)
    try:
        drawn, following = (bytes(font.getmask(chr(ord(character) + n))) for n in (0, 1))
    except OSError:  # of a damaged glyph
        return False
    return any(drawn) and drawn != following and drawn not in _boxes(face)


def choose_faces(
    faces: Sequence[Face], character: str, count: int, rng: np.random.Generator
) -> list[Face]:
    """Draw faces that have a character, one of a family at most: `count`, or all there are."""
    chosen: dict[str, Face] = {}
    for number in rng.permutation(len(faces)):
        face = faces[number]
        if face.family not in chosen and has_glyph(face, character):
            chosen[face.family] = face
        if len(chosen) == count:
            break
    return list(chosen.values())


def draw_glyph(face: Face, character: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a character in dark ink on light paper: turned, sheared, moved, blurred, with noise.

    The image is RGB of so many pixels a side. How much of each decides what it is of use for: with
    inks and papers of all colours and clutter, networks from random weights stay at chance.
    """
    side = REDUCED * size
    mask = _pose(_centred(face, character, side), rng)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.8) * side / 96)).reduce(REDUCED)
    cover = np.asarray(mask, np.float32)[:, :, None] / 255

    ink = rng.uniform(0, 90) + rng.uniform(-25, 25, 3)
    paper = rng.uniform(185, 245) + rng.uniform(-20, 20, 3)
    noise = rng.normal(0, rng.uniform(0, 6), (size, size, 3))
    pixels = paper + cover * (ink - paper) + noise
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _centred(face: Face, character: str, side: int) -> Image.Image:
    """Draw a character in the middle of a mask, smaller where it would not fit in."""
    size = round(INK * side)
    left, top, right, bottom = _font(face, size).getbbox(character)
    extent = max(right - left, bottom - top)
    if extent > FITTING * side:
        size = int(size * FITTING * side / extent)
        left, top, right, bottom = _font(face, size).getbbox(character)

    mask = Image.new("L", (side, side))
    place = (side - right - left) / 2, (side - bottom - top) / 2
    ImageDraw.Draw(mask).text(place, character, fill=255, font=_font(face, size))
    return mask


def _pose(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn, shear, scale and move what is in a mask."""
    side = mask.width
    angle = np.radians(rng.uniform(-4, 4))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.uniform(-0.08, 0.08)], [rng.uniform(-0.04, 0.04), 1]])
    matrix = np.linalg.inv(rotation @ shear @ np.diag(rng.uniform(0.85, 1.05, 2)))

    moved = rng.uniform(-0.05, 0.05, 2) * side
    offset = side / 2 - matrix @ (side / 2 + moved)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return mask.transform(mask.size, method, coefficients, resample)
