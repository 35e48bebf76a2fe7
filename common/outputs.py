"""Where commands write: tried before the work, and never in place of what is not theirs.

What lies there already is recognised by its content. A result of this project is replaced, as a
whole; anything else is refused.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from metric_learning.common.atomic import sync, temporary_beside
from metric_learning.common.names import to_line
from metric_learning.common.schema import read_json


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder that a command writes.

    Attributes:
        name: what people call it, with its article.
        find_foreign: looks at what lies there, and returns the name of what this project did not
            write as this kind, or None. Any error of it means that it is foreign.
    """

    name: str
    find_foreign: Callable[[Path], str | None]


def kind_of_file(name: str, is_ours: Callable[[Path], bool]) -> Kind:
    """Return a kind of file that is told by a look at its content."""
    return Kind(name, lambda path: None if is_ours(path) else path.name)


def json_kind(name: str, *keys: str) -> Kind:
    """Return the kind of a JSON object with these keys."""

    def is_ours(path: Path) -> bool:
        with path.open("rb") as file:
            if file.read(1) != b"{":  # which spares to read gigabytes of something else
                return False
        found = read_json(path, name)
        return isinstance(found, dict) and set(keys) <= set(found)

    return kind_of_file(name, is_ours)


def csv_kind(name: str, columns: Collection[str], others: Collection[str] = ()) -> Kind:
    """Return the kind of a CSV file that has these columns, and none of the `others`."""

    def is_ours(path: Path) -> bool:
        with path.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
            found = set(next(csv.reader(file)))
        return set(columns) <= found and not found & set(others)

    return kind_of_file(name, is_ours)


def prepare_output(flag: str | None, file: str | Path, kind: Kind) -> Path:
    """Return the file of a flag, or of none, after a try whether it can be written.

    Its folder is made where there is none. Raises ValueError where it cannot be written, or lies
    there and is of another kind; nothing of it is lost. An empty file holds nothing.
    """
    path = Path(file)
    what = _in_words(flag, file)
    with _as_value_error(what):
        _refuse_loop(path)
        if path.is_dir():
            raise ValueError(f"{what}: expected a file to write, found a folder")
        if path.exists() and not path.is_file():
            raise ValueError(f"{what}: expected a regular file to write, found a device or pipe")
        if path.exists() and path.stat().st_size:
            _refuse_foreign(path, kind, what)

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(Path(os.path.realpath(path)))
        temporary.open("xb").close()
        temporary.unlink()
    return path


def prepare_folder(flag: str, folder: str | Path, kind: Kind) -> Path:
    """Return the folder of a flag that a result of several files goes to, after a try.

    Raises ValueError where it cannot be written, or holds what is not of this kind.
    """
    path = Path(folder)
    what = _in_words(flag, folder)
    with _as_value_error(what):
        _refuse_loop(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{what}: expected a folder to write, found a file")
        if path.exists() and any(path.iterdir()):
            _refuse_foreign(path, kind, what)

        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _staging(Path(os.path.realpath(path)))
        staging.mkdir()
        staging.rmdir()
    return path


def refuse_same(**files: str | None) -> None:
    """Raise ValueError where two flags name one file."""
    flags: dict[str, str] = {}
    for flag, file in files.items():
        place = os.path.realpath(file) if file else ""
        if place and place in flags:
            raise ValueError(f"--{flags[place]} and --{flag} name one file: give two")
        flags[place] = flag


@contextlib.contextmanager
def replaced_folder(folder: Path, keep: Collection[str] = ()) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of `folder` if all went well.

    What is called as one of `keep` goes on from the former folder.
    """
    target = Path(os.path.realpath(folder))
    staging = _staging(target)
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process with the same number
    staging.mkdir()
    try:
        yield staging
        for path in staging.iterdir():
            if path.is_file():
                sync(path)

        if staging.parent == target:
            _replace_content(target, staging, keep)
        else:
            _exchange(target, staging, keep)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging(target: Path) -> Path:
    """Return where a new folder is written: beside its place, or in it where that cannot move."""
    temporary = temporary_beside(target)
    cannot_move = target.exists() and (
        os.path.ismount(target) or target == Path.cwd() or not os.access(target.parent, os.W_OK)
    )
    return target / temporary.name if cannot_move else temporary


def _exchange(target: Path, staging: Path, keep: Collection[str]) -> None:
    """Rename two folders, so that nobody sees half of one."""
    former = staging.with_suffix(".old")
    if target.exists():
        target.rename(former)
    try:
        staging.rename(target)
    except OSError:
        if former.exists():
            former.rename(target)
        raise

    for name in keep:
        if (former / name).exists():
            (former / name).rename(target / name)
    shutil.rmtree(former, ignore_errors=True)


def _replace_content(target: Path, staging: Path, keep: Collection[str]) -> None:
    """Replace files of a folder one after the other."""
    for path in target.iterdir():
        if path != staging and path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in staging.iterdir():
        path.rename(target / path.name)


def _in_words(flag: str | None, path: str | Path) -> str:
    return f"--{flag}={to_line(str(path))}" if flag else to_line(str(path))


def _refuse_loop(path: Path) -> None:
    """Raise OSError where a link leads to itself, which else would pass for nothing."""
    with contextlib.suppress(FileNotFoundError):
        path.stat()


def _refuse_foreign(path: Path, kind: Kind, what: str) -> None:
    """Raise ValueError where what lies at a path is not of a kind."""
    try:
        foreign = kind.find_foreign(path)
    except Exception:  # a file of anything can raise anything
        foreign = path.name
    if foreign is None:
        return

    is_inside = foreign != path.name
    found = f"holds {to_line(foreign)}, which is not of {kind.name}" if is_inside else "exists"
    reason = "" if is_inside else f" and is not {kind.name} of this project"
    raise ValueError(
        f"{what} {found}{reason}, so nothing is replaced: choose another name, or move it away"
    )


@contextlib.contextmanager
def _as_value_error(what: str) -> Iterator[None]:
    """Say in an OSError which flag names what cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{what} cannot be written: {error.strerror or error}") from error
