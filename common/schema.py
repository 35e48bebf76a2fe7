"""What a file may say: sizes, depth and types, checked before anything of it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metric_learning.common.text_files import read_text

LARGEST_JSON = 2**30  # bytes; an evaluation names every query that flipped
DEEPEST = 16  # levels of lists and objects
MOST_VALUES = 2**25  # on one level
LARGEST_COUNT = 2**31  # of what is counted: images, steps, dimensions
LONGEST_SHOWN = 60  # characters of a wrong value in a message


def parse_json(text: str | bytes, what: str) -> Any:
    """Parse JSON; ValueError, which says `what` it is, where it is none or nested too deep."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: not JSON ({error})") from error
    if not is_plain(found):
        raise ValueError(f"{what} is damaged: lists and objects are nested too deep")
    return found


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file, see `parse_json` and `read_text`."""
    return parse_json(read_text(path, what, LARGEST_JSON), what)


def is_plain(value: Any) -> bool:
    """Whether a value is text, a number, nothing, or lists and dicts of them, not nested deep."""
    level = [value]
    for _ in range(DEEPEST):
        nested = [one for one in level if isinstance(one, list | tuple | dict)]
        num_plain = sum(isinstance(one, str | int | float | None) for one in level)
        if len(nested) + num_plain < len(level):
            return False
        if not nested:
            return True
        if sum(map(len, nested)) > MOST_VALUES:  # a list that holds itself many times
            return False
        level = [
            inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return False


def is_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 0, and no larger than what can be counted."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def is_number(value: Any) -> bool:
    """Whether a value is a number, be it infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return is_number(value) and abs(value) < 2**1023 and math.isfinite(value)


def is_label(value: Any) -> bool:
    """Whether a value is an integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_object(value: Any, is_right: Callable[[Any], bool] = lambda value: True) -> bool:
    """Whether a value is an object whose names are texts, of plain values that are all right."""
    is_named = isinstance(value, dict) and all(map(is_text, value))
    return is_named and is_plain(value) and all(map(is_right, value.values()))


def is_list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for a list of what is right."""
    return lambda value: isinstance(value, list | tuple) and all(map(is_right, value))


@dataclass(frozen=True)
class Field:
    """An entry of an object: its name, what is expected of it in words, and its check."""

    name: str
    expected: str
    is_right: Callable[[Any], bool]
    is_needed: bool = True


def check_fields(found: Any, fields: Iterable[Field], what: str) -> dict[str, Any]:
    """Return an object whose fields are as they should be; it may have others.

    Raises ValueError, which says `what` it is, where one is not, or a needed one is not there.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{what} is damaged: expected an object, found {shown(found)}")
    for field in fields:
        if field.name not in found:
            if field.is_needed:
                raise ValueError(f"{what} is damaged: it lacks {field.name}")
        elif not field.is_right(found[field.name]):
            raise ValueError(
                f"{what} is damaged: expected {field.name} to be {field.expected}, found "
                f"{shown(found[field.name])}"
            )
    return found


def shown(value: Any) -> str:
    """Show a value of a file in a message, in one line and not at length."""
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    text = repr(value[:LONGEST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= 2 * LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
