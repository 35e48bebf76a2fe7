"""Fetches public data sets: python data/download.py NAME.

Exit status: 0 when the data set is in place, 1 when steps are left to do by hand, 2 on an error.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metric_learning.common.cli import user_errors
from metric_learning.common.download import (
    CHUNK,
    MOST_BYTES,
    TooLargeError,
    check_room,
    checksum_of,
    download,
)
from metric_learning.common.flags import Flag, boolean, parse_flags, path
from metric_learning.common.log import show
from metric_learning.common.places import data_root

GB = 10**9
MOST_MEMBERS = 10**6  # of an archive; SOP has 120,066
# What the reading of a broken archive raises.
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(RuntimeError, NotImplementedError, UnicodeError, struct.error),
)


@dataclass(frozen=True)
class Source:
    """Where one data set comes from: its `urls` are tried in turn, `md5` is of the archive.

    The unpacked data set goes to the folder `folder` and holds `marker`, a file or a folder.
    Neither the archive nor what it holds is larger than `most` bytes.
    """

    folder: str
    marker: str
    urls: tuple[str, ...]
    filename: str
    md5: str | None = None
    most: int = MOST_BYTES


SOURCES: dict[str, Source] = {
    "sop": Source(
        "Stanford_Online_Products",
        "Ebay_train.txt",
        (
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
        ),
        "Stanford_Online_Products.zip",
        "7f73d41a2f44250d4779881525aea32e",
        5 * GB,
    ),
    "cub200_2011": Source(
        "CUB_200_2011",
        "images.txt",
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",),
        "CUB_200_2011.tgz",
        "97eceeb196236b17998738112f37df78",
        3 * GB,
    ),
    "cars196": Source(
        "cars196",
        "cars_annos.mat",
        (
            "http://ftp.cs.stanford.edu/cs/cvgl/CARS196.zip",
            "ftp://cs.stanford.edu/cs/cvgl/CARS196.zip",
        ),
        "CARS196.zip",
        most=5 * GB,
    ),
    "cifar10": Source(
        "cifar10",
        "data_batch_1",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        GB,
    ),
    "omniglot": Source(
        "omniglot",
        "images_background",
        (
            "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
            "images_background.zip",
        ),
        "images_background.zip",
        "68d2efa1b9178cc56df9314c21c6e718",
        GB // 4,
    ),
}

MANUAL: dict[str, tuple[str, str]] = {
    "cub200_2010": (
        "CUB_200_2010/images",
        "CUB-200 (2010) is handed out by its authors: get images.tgz from "
        "https://www.vision.caltech.edu/datasets/ (Caltech-UCSD Birds 200, not 2011)\n"
        "and unpack it so that {folder}/001.Black_footed_Albatross holds images.",
    ),
    "inshop": (
        "inshop/list_eval_partition.txt",
        "In-Shop Clothes Retrieval needs its authors' permission: follow "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html,\n"
        "unpack img.zip to {parent}/img and put Eval/list_eval_partition.txt at {folder}.",
    ),
}


FLAGS = (
    Flag("dir", path, str(data_root()), "where its folder goes"),
    Flag("sha256", str, None, "expected sha256 of the archive"),
    Flag("unverified", boolean, False, "fetch what comes over plain http and has no checksum"),
)
NAME = Flag("name", str, None, f"one of {', '.join([*SOURCES, *MANUAL])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch one data set; 0: it is in place, 1: steps are left to do by hand."""
    with user_errors():
        args = parse_flags(__doc__, FLAGS, argv, NAME, prog="python data/download.py")
        if args.name in MANUAL:
            return explain(args.name, Path(args.dir))
        if args.name not in SOURCES:
            known = ", ".join([*SOURCES, *MANUAL])
            what = f"unknown data set '{args.name}'" if args.name else "no data set named"
            raise ValueError(f"{what}; expected one of {known}")
        fetch(SOURCES[args.name], Path(args.dir), args.sha256, args.unverified)
    return 0


def explain(name: str, root: Path) -> int:
    """Print how to get a data set that cannot be fetched; 0 when it is already there."""
    place, text = MANUAL[name]
    folder = root / place
    if folder.exists():
        show(f"{folder} is already there")
        return 0
    show(text.format(folder=folder, parent=folder.parent))
    return 1


def fetch(source: Source, root: Path, sha256: str | None = None, is_trusted: bool = False) -> None:
    """Download, verify and unpack a data set into its folder under root.

    What nobody could notice to be changed on its way is refused, unless it `is_trusted`.
    """
    target = root / source.folder
    if (target / source.marker).exists():
        show(f"{target} is already there")
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} lacks {source.marker}; move it away and run again")

    root.mkdir(parents=True, exist_ok=True)
    archive = root / source.filename
    is_known = sha256 is not None or source.md5 is not None
    if not archive.exists():
        is_open = any(url.startswith("http:") for url in source.urls)
        if is_open and not (is_known or is_trusted):
            raise ValueError(
                f"{source.urls[0]} comes over plain http, and no checksum of it is published: give "
                f"--sha256=HEX, put an archive that you trust at {archive}, or --unverified=True"
            )
        part = archive.with_name(archive.name + ".part")
        try:
            download(source.urls, part, source.most)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; run again to resume") from error
        verify(part, source.md5, sha256)
        os.replace(part, archive)
    else:
        verify(archive, source.md5, sha256)

    unpack(archive, source.marker, target, source.most)
    show(f"{target} is ready; {archive} can be deleted")


def verify(path: Path, md5: str | None, sha256: str | None) -> None:
    """Compare a file with its published checksum and a given one; ValueError where it differs."""
    if md5 is None and sha256 is None:
        show(f"no published checksum: the file's sha256 is {checksum_of(path, 'sha256')}")
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        found = checksum_of(path, algorithm) if expected else None
        if expected and found != expected.lower():
            raise ValueError(
                f"{path}: expected {algorithm} {expected}, found {found}; delete it and run again"
            )


def unpack(archive: Path, marker: str, target: Path, most: int) -> None:
    """Unpack beside the target, then move the folder that holds the marker to the target.

    Raises ValueError: a broken archive, one with unsafe names or links, or without the marker.
    TooLargeError: it holds more than `most` bytes or a million files, or the disk has no room.
    """
    left = Room(archive, target.parent, most)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        try:
            members = zip_members if zipfile.is_zipfile(archive) else tar_members
            for name, file in members(archive):
                write_member(content, name, file, left)
        except BROKEN as error:
            reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
            raise ValueError(
                f"{archive}: broken archive: {reason}; delete it and run again"
            ) from error

        found = min(content.rglob(marker), key=lambda path: len(path.parts), default=None)
        if found is None:
            raise ValueError(f"{archive}: expected an archive that holds {marker}")
        os.replace(found.parent, target)


@dataclass
class Room:
    """How much more of an archive may be written to a folder; one is made for every archive."""

    archive: Path
    folder: Path
    most: int
    members: int = MOST_MEMBERS

    def take(self, num_bytes: int, members: int = 0) -> None:
        """Count what is about to be written; TooLargeError where it is too much."""
        self.most -= num_bytes
        self.members -= members
        if self.most < 0 or self.members < 0:
            raise TooLargeError(
                f"{self.archive} holds more than its data set has: it is another archive, delete it"
            )
        check_room(self.folder, num_bytes, f"what {self.archive} holds")


def zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names of the members of a zip file, with an open file, or None for a folder."""
    with zipfile.ZipFile(archive) as file:
        for info in tqdm(file.infolist(), desc="unpack", unit=" files", disable=None):
            if not info.filename:
                raise ValueError(f"{archive}: refused: it has a file without a name")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{archive}: refused: {info.filename} is a link or special file")
            if info.is_dir():
                yield info.filename, None
            else:
                with file.open(info) as member:
                    yield info.filename, member


def tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names of the members of a tar file, with an open file, or None for a folder."""
    with tarfile.open(archive) as file:
        for info in tqdm(file, desc="unpack", unit=" files", disable=None):
            if not (info.isfile() or info.isdir()) or info.issparse():
                raise ValueError(f"{archive}: refused: {info.name} is a link or special file")
            yield info.name, file.extractfile(info)


def write_member(content: Path, name: str, file: IO[bytes] | None, room: Room) -> None:
    """Write one member below a folder; a name that leads out of it, or nowhere, is refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise ValueError(f"refused: the archive's member {name!r} leads out of its folder")
    if "\0" in name or (file is not None and not path.parts):
        raise ValueError(f"refused: the archive has a file named {name!r}")

    target = content / path
    room.take(0, members=1)
    if file is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as out:
        while block := file.read(CHUNK):
            room.take(len(block))
            out.write(block)


if __name__ == "__main__":
    sys.exit(main())
