"""Downloads that go on where they stopped, and checksums of files."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


def download(urls: Sequence[str], part: Path) -> None:
    """Download one file to `part` from the first address that answers, going on where it stopped.

    Raises ConnectionError where no address gave the whole file; what came is kept.
    """
    failures = []
    for url in urls:
        if part.exists() and url.startswith("ftp:"):
            failures.append(f"{url}: cannot resume; delete {part} to start anew")
            continue
        try:
            return _download_from(url, part)
        except (HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or error
            failures.append(f"{url}: {' '.join(str(reason).split())}")
    raise ConnectionError(f"cannot download {'; '.join(failures)}")


def _download_from(url: str, part: Path) -> None:
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
        return _download_from(url, part)

    with response:
        have = have if getattr(response, "status", None) == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None
        )
        with open(part, "ab" if have else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
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
