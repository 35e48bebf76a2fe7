"""Names of classes in matplotlib's pictures: as text, in a font that has their letters."""

from __future__ import annotations

from functools import cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend

# Fonts of many scripts that are often installed, and the words that others have in their names.
MANY_SCRIPTS = ("noto sans", "cjk", "unifont", "arial unicode", "wenquanyi", "takao", "ipagothic")

BOXES = "last resort"  # a font of boxes, which matplotlib brings along


def plain_text(name: str) -> tuple[str, list[str]]:
    """Return a name, and the font families that have its letters between them.

    Letters that no font has become escapes, for they would be boxes.
    """
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    families = [str(family) for family in rcParams["font.family"]]
    usual = font_manager.findfont(font_manager.FontProperties(family=families))
    lacking = {ord(letter) for letter in text} - letters_of(usual)
    for family, file in _other_fonts() if lacking else ():
        found = lacking & letters_of(file)
        if found:
            families.append(family)
            lacking -= found

    for code in lacking:
        text = text.replace(chr(code), chr(code).encode("ascii", "backslashreplace").decode())
    return text, families


def shorten(name: str, most: int) -> str:
    """Return a name of at most so many letters, its middle left out where it has more."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def letter(artist: Any, name: str) -> None:
    """Set the text of a matplotlib text: its dollar signs are no formula."""
    text, families = plain_text(name)
    artist.set_parse_math(False)
    artist.set_fontfamily(families)
    artist.set_text(text)


def letter_legend(legend: Legend, names: list[str]) -> None:
    """Set the names of a legend's entries, which matplotlib leaves out where they begin with _."""
    for artist, name in zip(legend.get_texts(), names, strict=True):
        letter(artist, name)


@cache
def letters_of(file: str) -> frozenset[int]:
    """Return the letters, by number, that the font in a file has; none where there is none."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a font that cannot be read
        return frozenset()


@cache
def _other_fonts() -> tuple[tuple[str, str], ...]:
    """Return family and file of the installed upright fonts, those of many scripts first."""
    fonts = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight == 400 and BOXES not in entry.name.lower()
    }

    def place(family: str) -> tuple[bool, str]:
        return not any(word in family.lower() for word in MANY_SCRIPTS), family

    return tuple((family, fonts[family]) for family in sorted(fonts, key=place))
