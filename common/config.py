"""YAML files, in which every value is the text that was written.

YAML's own types are not asked: they would read `no` as False, `010` as 8 and `1e-4` as a word. A
flag knows by itself what it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypeAlias

import yaml

from metric_learning.common.text_files import read_text

# The folder that holds configs/: the checkout or, installed, this package.
HOME = Path(__file__).resolve().parents[1]
LARGEST = 2**20  # bytes
DEEPEST = 6  # mappings and lists within each other
NOTHING = ("null", "Null", "NULL", "~")  # unquoted, they leave the flag out

Value: TypeAlias = "str | list[str]"
Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"


def find_config(path: str) -> Path:
    """Return a file as it was named; one of configs/ that is not there, as this project has it."""
    named = Path(path)
    is_own = named.parts[:1] == ("configs",) and not named.exists() and (HOME / named).is_file()
    return HOME / named if is_own else named


def read_config(path: str) -> dict[str, Value]:
    """Read the YAML file of --config: flag -> its text, or a list of texts.

    Raises:
        ValueError: it is not YAML, or more than lines of `flag: value`; names the line.
        OSError: it cannot be read.
    """
    found = _read(path, f"config {path}", "lines of `flag: value`", is_flat=True)
    return {name: value for name, value in found.items() if not isinstance(value, dict)}  # type: ignore[misc]


def read_tree(path: str, what: str) -> dict[str, Tree]:
    """Read a YAML file of mappings and lists within each other, up to DEEPEST.

    `what` it is stands in errors, which are as of `read_config`.
    """
    return _read(path, f"{what} {path}", "lines of `name: value`", is_flat=False)


def _read(path: str, what: str, expected: str, is_flat: bool) -> dict[str, Tree]:
    text = read_text(find_config(path), what, LARGEST)
    try:
        return _Reader(what, text, is_flat).document(expected)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not YAML: {error}") from error


class _Reader:
    """Reads a document event by event, so that neither depth nor aliases cost anything."""

    def __init__(self, what: str, text: str, is_flat: bool) -> None:
        self.what, self.is_flat = what, is_flat
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def document(self, expected: str) -> dict[str, Tree]:
        """Read the one document, a mapping."""
        next(self.events), next(self.events, None)  # the beginnings of stream and document
        if not isinstance(next(self.events, None), yaml.MappingStartEvent):
            raise ValueError(f"{self.what}: expected {expected}")
        found = self.mapping(1)
        next(self.events)  # the end of the document
        if not isinstance(rest := next(self.events), yaml.StreamEndEvent):
            self.refuse(rest, "a second document begins")
        return found

    def mapping(self, depth: int) -> dict[str, Tree]:
        """Read the mapping that has begun, at a depth from 1."""
        found: dict[str, Tree] = {}
        seen: set[str] = set()
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            name = self.text(key)
            if name in seen:
                self.refuse(key, f"{name} is given twice")
            seen.add(name)
            if not _is_nothing(value := next(self.events)):
                found[name] = self.value(value, depth)
        return found

    def value(self, event: yaml.Event, depth: int) -> Tree:
        """Read a value in a mapping or list at a depth."""
        may_nest = depth == 1 if self.is_flat else depth < DEEPEST
        if may_nest and isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self.value(item, depth + 1))
            return items
        if may_nest and not self.is_flat and isinstance(event, yaml.MappingStartEvent):
            return self.mapping(depth + 1)
        return self.text(event)

    def text(self, event: yaml.Event) -> str:
        """Return the text of a scalar; ValueError where something else stands in its place."""
        if not isinstance(event, yaml.ScalarEvent):
            self.refuse(event, "expected a text, a number or a list of them")
        if event.anchor or not any(event.implicit):
            self.refuse(event, "anchors, aliases and tags are not taken")
        return str(event.value)

    def refuse(self, event: yaml.Event, reason: str) -> NoReturn:
        """Raise ValueError with the line of an event."""
        assert event.start_mark is not None
        raise ValueError(f"{self.what}:{event.start_mark.line + 1}: {reason}")


def _is_nothing(event: yaml.Event) -> bool:
    if not isinstance(event, yaml.ScalarEvent):
        return False
    return event.style is None and event.value in NOTHING and not event.anchor
