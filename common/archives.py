"""Files in tar archives, by paths such as photos.tar/a.jpg: read where they lie, never unpacked."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

ARCHIVE = ".tar"
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_CONTENTS = 8  # archives whose tables of contents a process keeps, of about 150 bytes a file


class Member(NamedTuple):
    """Where a file lies in an archive, in bytes."""

    archive: str
    start: int
    size: int


def iterate_members(archive: str) -> Iterator[tuple[str, Member]]:
    """Yield the names and places of the regular files in a tar archive, in its order.

    Names that would lead out of it are left out. Raises ValueError where it is damaged, compressed
    or something else, OSError where it cannot be read.
    """
    if archive.lower().endswith(COMPRESSED):
        raise ValueError(
            f"{archive}: expected an archive that is not compressed, for its images are read where "
            "they lie: unpack it to a .tar (gunzip, zstd -d)"
        )
    try:
        with tarfile.open(archive, "r:", errors="surrogateescape") as opened:
            for found in opened:
                opened.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                name = posixpath.normpath(found.name)
                if found.isreg() and not name.startswith(("/", "..")):
                    yield name, Member(archive, found.offset_data, found.size)
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is damaged or no tar archive ({error})") from error


def find_member(path: str) -> Member | None:
    """Return where the file of a path lies, if the path leads into an archive.

    Of several files of one name it is the last one, as unpacking leaves it. Raises
    FileNotFoundError where the archive has no such file, and as `iterate_members` does.
    """
    archive, inside = os.path.dirname(path), path
    while not (archive.lower().endswith(ARCHIVE) and os.path.isfile(archive)):
        if len(archive) == len(inside):
            return None
        archive, inside = os.path.dirname(archive), archive

    state = os.stat(archive)
    contents = _contents(archive, state.st_size, state.st_mtime_ns)
    name = path[len(archive) :].lstrip("/")
    if name not in contents:
        raise FileNotFoundError(f"no file {name} in {archive}")
    return Member(archive, *contents[name])


@lru_cache(MOST_CONTENTS)
def _contents(archive: str, size: int, mtime: int) -> dict[str, tuple[int, int]]:
    """Return the places of the files of an archive, whose size and time are as they are."""
    return {name: (found.start, found.size) for name, found in iterate_members(archive)}


def read_member(member: Member) -> bytes:
    """Return the bytes of a file in an archive; fewer where the archive is cut short."""
    with open(member.archive, "rb") as file:
        file.seek(member.start)
        return file.read(member.size)
