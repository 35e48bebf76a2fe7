"""YAML files of flags, in which every value is the text that was written.

YAML's own types are not asked: they would read `no` as False, `010` as 8 and `1e-4` as a word. A
flag knows by itself what it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

from metric_learning.common.text_files import read_text

LARGEST = 2**20  # bytes
NOTHING = ("null", "Null", "NULL", "~")  # unquoted, they leave the flag out

Value = str | list[str]


def read_config(path: str) -> dict[str, Value]:
    """Read the YAML file of --config: flag -> its text, or a list of texts.

    Raises:
        ValueError: it is not YAML, or more than lines of `flag: value`; names the line.
        OSError: it cannot be read.
    """
    text = read_text(Path(path), f"config {path}", LARGEST)
    # Events come one after the other, so that neither depth nor aliases cost anything.
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        return _read_settings(path, events)
    except yaml.YAMLError as error:
        raise ValueError(f"config {path} is not YAML: {error}") from error


def _read_settings(path: str, events: Iterator[yaml.Event]) -> dict[str, Value]:
    next(events), next(events, None)  # the beginnings of stream and document
    first = next(events, None)
    if not isinstance(first, yaml.MappingStartEvent):
        raise ValueError(f"config {path}: expected lines of `flag: value`")

    settings: dict[str, Value] = {}
    seen: set[str] = set()
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        name = _text(path, key)
        if name in seen:
            _refuse(path, key, f"{name} is given twice")
        seen.add(name)

        value = next(events)
        if isinstance(value, yaml.SequenceStartEvent):
            settings[name] = list(_list(path, events))
        elif not _is_nothing(value):
            settings[name] = _text(path, value)

    next(events)  # the end of the document
    if not isinstance(rest := next(events), yaml.StreamEndEvent):
        _refuse(path, rest, "a second document begins")
    return settings


def _list(path: str, events: Iterator[yaml.Event]) -> Iterator[str]:
    while not isinstance(item := next(events), yaml.SequenceEndEvent):
        yield _text(path, item)


def _text(path: str, event: yaml.Event) -> str:
    """Return the text of a scalar; ValueError where something else stands in its place."""
    if not isinstance(event, yaml.ScalarEvent):
        _refuse(path, event, "expected a text, a number or a list of them")
    if event.anchor or not any(event.implicit):
        _refuse(path, event, "anchors, aliases and tags are not taken")
    return str(event.value)


def _is_nothing(event: yaml.Event) -> bool:
    if not isinstance(event, yaml.ScalarEvent):
        return False
    return event.style is None and event.value in NOTHING and not event.anchor


def _refuse(path: str, event: yaml.Event, reason: str) -> NoReturn:
    assert event.start_mark is not None
    raise ValueError(f"config {path}:{event.start_mark.line + 1}: {reason}")
