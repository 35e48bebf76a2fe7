"""Measure the search page under load: many clients that ask again and again, on this machine.

python -m benchmarks.speed.serve --index=photos.index --clients=50 --each=20

It starts `metric-learning serve` for the index. Each client sends images of the index, one request
after the other; the server computes with one thread, and shares the machine with the clients.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.retrieval.indexes import load_search_index

NUM_IMAGES = 100  # of the index, that are sent
TIMEOUT = 120  # seconds
FLAGS = (
    Flag("index", path, None, "search index that is served, by the weights that built it"),
    Flag("clients", positive, 50, "clients at once"),
    Flag("each", positive, 20, "requests of each client"),
)


class Answer(NamedTuple):
    """What came of one request: its status, 0 where there was none, and how long it took."""

    status: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the clients saw, in lines."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.index is None:
            raise ValueError("expected --index=FILE, a search index that infer.py built")
        paths = load_search_index(flags.index).paths
        chosen = np.linspace(0, len(paths) - 1, min(NUM_IMAGES, len(paths))).astype(int)
        images = [Path(paths[row]).read_bytes() for row in chosen.tolist()]

        with served(flags.index) as (address, process):
            ask(address, images[0])
            start = time.perf_counter()
            answers = ask_all(address, images, flags.clients, flags.each)
            seconds = time.perf_counter() - start
            memory = memory_of(process.pid)
        print(describe(answers, seconds))
        print(f"memory of the server and its decoders after it: {memory / 2**30:.2f} GiB")


@contextlib.contextmanager
def served(index: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve an index by one thread: its host and port, and the process."""
    command = [sys.executable, "-m", "metric_learning", "serve", f"--index={index}", "--port=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        found = next(
            (match for line in process.stdout if (match := re.match(r"open http://(.*)/", line))),
            None,
        )
        if found is None:
            raise ValueError("the server did not start: see its message")
        yield found[1], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def ask_all(address: str, images: Sequence[bytes], clients: int, each: int) -> list[Answer]:
    """Let clients ask at once, `each` so many times; their answers in no order."""

    def run(client: int) -> list[Answer]:
        return [ask(address, images[(client + 7 * n) % len(images)]) for n in range(each)]

    with ThreadPoolExecutor(clients) as pool:
        return [answer for found in pool.map(run, range(clients)) for answer in found]


def ask(address: str, image: bytes) -> Answer:
    """Search for an image."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        connection.request("POST", "/api/search?k=12", image)
        response = connection.getresponse()
        response.read()
        status = response.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return Answer(status, time.perf_counter() - start)


def memory_of(process: int) -> int:
    """Return the memory, in bytes, of a process and all below it on Linux, shared pages once."""
    found = 0
    with contextlib.suppress(OSError):  # it has ended meanwhile
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        found = 1024 * int(rollup.split("Pss:")[1].split()[0])
        for task in Path(f"/proc/{process}/task").iterdir():
            children = (task / "children").read_text().split()
            found += sum(memory_of(int(child)) for child in children)
    return found


def describe(answers: Sequence[Answer], seconds: float) -> str:
    """Count answers and errors, and how long the answers took."""
    times = 1000 * np.array([answer.seconds for answer in answers])
    num_wrong = sum(answer.status != 200 for answer in answers)
    shares = ", ".join(f"p{share} {np.percentile(times, share):.0f} ms" for share in (50, 95, 99))
    rate = len(answers) / seconds
    return f"{len(answers)} requests, {num_wrong} errors, {rate:.1f} a second, {shares}"


if __name__ == "__main__":
    main()
