"""Downloads that go on where they stopped and fit the disk, and checksums of files."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

CHUNK = 1 << 20
MOST_BYTES = 10**10  # of a file of which nothing is known
SPARE = 1 << 26  # bytes of a disk that are left free
TIMEOUT_SECONDS = 60


class TooLargeError(OSError):
    """A file is larger than it can be, or than the disk has room for."""


def download(urls: Sequence[str], part: Path, most: int = MOST_BYTES) -> None:
    """Download one file to `part` from the first address that answers, going on where it stopped.

    Raises ConnectionError where no address gave the whole file, and what came is kept;
    TooLargeError where it is larger than `most` bytes or the disk has no room for it.
    """
    failures = []
    for url in urls:
        if part.exists() and url.startswith("ftp:"):
            failures.append(f"{url}: cannot resume; delete {part} to start anew")
            continue
        try:
            return _download_from(url, part, most)
        except (HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or error
            failures.append(f"{url}: {' '.join(str(reason).split())}")
    raise ConnectionError(f"cannot download {'; '.join(failures)}")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise TooLargeError where a folder's disk has no room for so many bytes and some to spare."""
    free = shutil.disk_usage(folder).free
    if needed > free - SPARE:
        raise TooLargeError(
            f"{what} takes {needed / 1e6:,.1f} MB, {folder} has {free / 1e6:,.1f} MB free: make "
            "room, or choose another folder"
        )


def _download_from(url: str, part: Path, most: int) -> None:
    """Download one address to a file, appending to it when the server can."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "metric-learning"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was whole already
        part.unlink()  # longer than the file: of something else
        return _download_from(url, part, most)

    with response:
        have = have if getattr(response, "status", None) == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        check_room(part.parent, int(length or 0), url)
        bar = tqdm(
            desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None
        )
        with open(part, "ab" if have else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                have += len(chunk)
                if max(have, total or 0) > most:
                    raise TooLargeError(
                        f"{url} gives {max(have, total or 0):,} bytes, expected at most {most:,}: "
                        f"it is another file; delete {part}"
                    )
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and have != total:
        raise ConnectionError(f"connection closed after {have:,} of {total:,} bytes")


def checksum_of(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in hexadecimal, "md5" or "sha256"."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
