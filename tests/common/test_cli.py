"""How errors are printed under torchrun."""

import errno
import os
import sys
import time

import pytest

from metric_learning.common.cli import OTHER_RANKS_WAIT, user_errors
from metric_learning.common.log import log, show
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report import summary
from metric_learning.engine.search import duplicates
from metric_learning.reader import check


@pytest.mark.parametrize(
    ("rank", "waits", "line"),
    [(None, [], "no"), ("0", [], "no"), ("1", [OTHER_RANKS_WAIT], "rank 1: no")],
)
def test_other_ranks_wait_for_the_first_to_end_them(monkeypatch, capsys, rank, waits, line):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise ValueError("no")
    assert stop.value.code == 2 and slept == waits
    assert capsys.readouterr().err == f"error: {line}\n"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError("CUDA out of memory"), "the GPU has too little memory: lower"),
        (RuntimeError("CUDA error: out of memory"), "the GPU has too little memory: lower"),
        (RuntimeError("cuDNN error: CUDNN_STATUS\nmore"), "failed (cuDNN error: CUDNN_STATUS)"),
        (MemoryError(), "this machine has too little memory: lower"),
        (RuntimeError("[..] DefaultCPUAllocator: can't allocate memory: you"), "too little memory"),
        (RuntimeError("can't start new thread"), "no further thread"),
        (RuntimeError("NCCL error: remote process exited"), "another process of this run ended"),
    ],
)
def test_faults_of_the_machine_are_one_line(capsys, error, words):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and words in line


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shape"), user_errors():
        raise RuntimeError("shape mismatch")


class Gone:
    """A stdout that cannot be written."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, number):
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    flush = isatty = lambda self: None


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_lines_that_cannot_be_printed_end_nothing(monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "stdout", Gone(number))
    assert log("one").endswith("] one")
    show("two")
    error = capsys.readouterr().err
    assert error == f"stdout cannot be written ({os.strerror(number)}): going on without it\n"


def test_a_process_without_stdout_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with user_errors():
        assert log("one").endswith("] one")


def test_what_stdout_cannot_encode_is_escaped(capsys):
    show("caf\udce9.jpg")
    assert capsys.readouterr().out == "caf\\udce9.jpg\n"


@pytest.mark.parametrize("name", ["a\x00b", "a\x1b[2Jb", "a\rb", "a\u202eb", "a\u2028b", "a\nb"])
def test_a_name_can_neither_break_nor_turn_a_line(name, capsys):
    escaped = name.encode("unicode_escape").decode()
    assert log(f"image {name}").endswith(f"image {escaped}")
    with pytest.raises(SystemExit), user_errors():
        raise FileNotFoundError(2, "no file", f"{name}.jpg")
    found = capsys.readouterr()
    assert (
        found.out.endswith(f"image {escaped}\n") and found.err == f"error: {escaped}.jpg: no file\n"
    )


@pytest.mark.parametrize(
    "main", [report.main, check.main, prepare.main, summary.main, duplicates.main]
)
def test_what_works_in_one_process_refuses_several(main, error_of, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {
        report.main: ["run"],
        check.main: [],
        prepare.main: ["scan", str(tmp_path)],
        summary.main: [str(tmp_path), "a"],
        duplicates.main: [str(tmp_path)],
    }
    assert "works in one process, found 2: start it without torchrun" in error_of(main, words[main])
