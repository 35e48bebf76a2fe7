"""Claims on work in a shared folder: one owner at a time, and none that is dead for long."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from processes import ROOT

from metric_learning.engine.leaderboard.trainings import claims as claims_module
from metric_learning.engine.leaderboard.trainings.claims import (
    LEASE,
    Claims,
    own_process,
    started_at,
)


@pytest.fixture
def elsewhere(monkeypatch):
    """Let claims be made as on another machine."""

    def make(folder, **options):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            return Claims(folder, **options)

    return make


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def count_on(claims):
    """Count once, as an owner that lives does in time."""
    claims._count += 1
    claims._held.write_text(claims._text())


def test_one_takes_and_releases(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("a") and not second.take("a")
    assert second.take("b")
    first.release()
    second.release()
    assert second.take("a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0", "1"]
    second.release()


@pytest.mark.parametrize("number", range(3))
def test_of_many_threads_one_takes(tmp_path, number):
    barrier, taken = threading.Barrier(8), []

    def take():
        claims = Claims(tmp_path)
        barrier.wait()
        taken.append(claims.take("a"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]


TAKE = """
import sys
from pathlib import Path
from metric_learning.engine.leaderboard.trainings.claims import Claims
print(Claims(Path(sys.argv[1])).take("a"), flush=True)
sys.stdin.read()
"""


def test_of_a_dead_process_one_takes_over_at_once(tmp_path):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", TAKE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "True\n"
        assert not Claims(tmp_path).take("a")
        process.kill()
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("a") and not second.take("a")


def test_a_number_that_another_process_has_got_is_no_owner(tmp_path):
    (tmp_path / "a").mkdir()
    owner = own_process() | {"owner": "x", "started": "12345"}
    (tmp_path / "a" / "7").write_text(json.dumps(owner))
    assert Claims(tmp_path).take("a")
    assert (tmp_path / "a" / "8").exists()


def test_an_end_that_nobody_waited_for_is_an_end():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not claims_module.is_alive(pid, started_at(os.getpid()))
    assert started_at(pid) == "never"
    os.waitpid(pid, 0)
    assert claims_module.is_alive(os.getpid(), started_at(os.getpid()))


def test_another_container_has_other_processes(tmp_path, monkeypatch):
    """Though the name of the machine and its start are the same."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", lambda path: "pid:[1]")
        patch.setattr(os, "getpid", lambda: 2**22 + 1)  # of nobody here
        theirs = Claims(tmp_path)
        assert theirs.take("a")
    assert not Claims(tmp_path).take("a")
    theirs.release()


def test_an_owner_elsewhere_is_dead_when_its_count_stands_still_for_a_lease(tmp_path, elsewhere):
    owner, clock = elsewhere(tmp_path, lease=1e6), Clock()
    ours = Claims(tmp_path, clock=clock)
    assert owner.take("a")
    assert not ours.take("a")  # seen for the first time
    clock.now += LEASE - 1
    assert not ours.take("a")
    count_on(owner)
    clock.now += 2
    assert not ours.take("a")  # it has counted
    clock.now += LEASE + 1
    third = Claims(tmp_path, clock=clock)
    assert not third.take("a")  # which has not looked for so long
    assert ours.take("a")
    owner.release()  # it wakes up: what it had claimed is another's now
    assert not third.take("a")
    ours.release()
    assert third.take("a")
    third.release()


def test_a_living_owner_counts_by_itself(tmp_path, elsewhere):
    owner, clock = elsewhere(tmp_path, lease=0.05), Clock()
    ours = Claims(tmp_path, clock=clock)
    assert owner.take("a")
    texts = set()
    while len(texts) < 3:
        texts.add((tmp_path / "a" / "0").read_text())
        assert not ours.take("a")
    owner.release()
    assert ours.take("a")
    ours.release()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"owner": "x"}',
        b'{"owner": "x", "host": HOST, "boot": BOOT, "pid": "many", "started": "1"}',
        b'{"owner": "x", "host": HOST, "boot": BOOT, "pid": null, "started": "1"}',
        b'{"owner": "x", "host": HOST, "boot": BOOT, "pid": 1e400, "started": "1"}',
        b'{"owner": "x", "host": HOST, "boot": BOOT, "pid": 99999999999999999999, "started": "1"}',
    ],
)
def test_damaged_claims_are_free_after_a_lease(tmp_path, content):
    me = own_process()
    for name, key in ((b"HOST", "host"), (b"BOOT", "boot")):
        content = content.replace(name, json.dumps(me[key]).encode())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0").write_bytes(content)
    (tmp_path / "a" / "other").write_text("no claim")
    clock = Clock()
    claims = Claims(tmp_path, clock=clock)
    assert not claims.take("a")
    clock.now += LEASE + 1
    assert claims.take("a")
    claims.release()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(OSError):
        Claims(tmp_path / "claims").take("a")
