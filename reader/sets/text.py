"""Text from outside: files in whatever encoding has a mark, and cells that mean the same."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from pathlib import Path

from metric_learning.common.text_files import check_regular

BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f]")  # of binary files, which white space is not
INTEGRAL = re.compile(r"([+-]?[0-9]+)\.0*")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# What was read as the same, in the line that says so.
SPACES, NORMAL, INTEGERS = "spaces around", "composed characters in", ".0 behind"


def read_text(path: Path, expected: str, holds_names: bool = False) -> str:
    """Read a UTF-8 text file, or one of UTF-16 with a byte order mark; ValueError for others.

    Line ends stay as they are. One that `holds_names` of files may have their bytes, whatever these
    are, as Python has them in names (surrogateescape); but no control characters.
    """
    check_regular(path, str(path))
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith(BYTE_ORDER_MARKS) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if holds_names and encoding != "utf-16" and not CONTROLS.search(data):
            return data.decode(encoding, "surrogateescape")
        raise ValueError(f"{path}: expected {expected}, found other bytes") from error


def strip(text: str) -> str:
    """Remove white space and byte order marks around a text."""
    return text.strip().strip("\ufeff").strip()


def unify_integers(text: str) -> str:
    """Write an integral number without its point: 3 for 3.0; other texts stay."""
    match = INTEGRAL.fullmatch(text)
    return match[1] if match else text


def unify_labels(labels: list[str]) -> tuple[list[str], Counter[str]]:
    """Write labels that mean the same class in the same way.

    Spaces around them go, characters are composed (NFC), and 3.0 is 3. Where a label is a number
    that is not integral, they are no numbers of classes: 3.0 stays, unless there is a 3 too.

    Returns:
        The labels, and what was changed -> how often.
    """
    changed: Counter[str] = Counter()
    whole = _replaced(labels, [strip(label) for label in labels], SPACES, changed)
    whole = _replaced(
        whole,
        [label if label.isascii() else unicodedata.normalize("NFC", label) for label in whole],
        NORMAL,
        changed,
    )

    numbers = [label for label in set(whole) if NUMBER.fullmatch(label) and "." in label]
    is_integral = all(INTEGRAL.fullmatch(number) for number in numbers)
    spellings = Counter(unify_integers(label) for label in set(whole))
    plain = [
        short if is_integral or spellings[short] > 1 else label
        for label, short in zip(whole, map(unify_integers, whole), strict=True)
    ]
    whole = _replaced(whole, plain, INTEGERS, changed)
    return whole, changed


def _replaced(before: list[str], after: list[str], what: str, changed: Counter[str]) -> list[str]:
    """Count the texts that change, and return what they change to."""
    count = sum(old != new for old, new in zip(before, after, strict=True))
    if count:
        changed[f"{what} labels"] += count
    return after
