"""The run folder: one writer, records that no step has twice, files that cannot be written."""

import json
from types import SimpleNamespace

import pytest

from metric_learning.engine.run.run_folder import RunFolder, minutes_of

RECORDS = [("train", 1), ("test", 1), ("train", 2), ("test", 2), ("train", 3)]


def write_records(folder, torn=""):
    lines = [json.dumps({"kind": kind, "step": step, "loss": 0.1}) + "\n" for kind, step in RECORDS]
    folder.mkdir()
    (folder / "stats.jsonl").write_text("".join(lines) + torn)


def records(folder):
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [(record["kind"], record["step"]) for record in map(json.loads, lines)]


@pytest.mark.parametrize("torn", ["", '{"kind": "tr', '{"kind": "train", "step": 1', "\0\0\0"])
@pytest.mark.parametrize(
    ("step", "tested", "kept"), [(0, -1, 0), (1, -1, 1), (2, 1, 3), (2, 2, 4), (9, 9, 5)]
)
def test_no_record_is_written_twice(tmp_path, torn, step, tested, kept):
    write_records(tmp_path / "run", torn)
    with RunFolder(tmp_path / "run", {}, step=step, tested=tested) as run:
        run.record("train", 10, loss=1.0)
    assert records(tmp_path / "run") == [*RECORDS[:kept], ("train", 10)]


def test_two_processes_never_write_to_one_folder(start, tiny_flags, tmp_path):
    folder = tmp_path / "run"
    leftover = folder / ".last.pt.1.tmp"
    with RunFolder(folder, {}):
        leftover.touch()
        other = start(*tiny_flags, "--run_name=run", "--checkpoint=auto")
        assert other.wait() == 2
        assert f"another process writes to {folder}: wait for its end" in other.output
        assert leftover.exists()
    with RunFolder(folder, {}):
        assert not leftover.exists()


def fail(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "attribute", "method"),
    [
        ("log.txt", "_log_file", "write"),
        ("stats.jsonl", "_stats_file", "write"),
        ("tensorboard", "_curves", "add_scalar"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch, name, attribute, method):
    with pytest.raises(OSError) as error, RunFolder(tmp_path, {}) as run:
        monkeypatch.setattr(run, attribute, SimpleNamespace(**{method: fail, "close": fail}))
        run.log("line")
        run.record("train", 1, loss=0.5)
    assert error.value.filename == str(tmp_path / name)
    assert error.value.strerror == "No space left on device"


def test_the_thread_that_writes_curves_fails_quietly(start, tiny_flags, tmp_path):
    """It prints no traceback: the next record raises its error."""
    flags = [*tiny_flags, "--total_iter_num=1000", "--test_iter_step=0", "--save_iter_step=0"]
    short = start(*flags, "--run_name=run", max_file_size=20_000)
    assert short.wait() == 2
    assert short.output.splitlines()[-1].startswith(f"error: {tmp_path}/run/")
    assert "Traceback" not in short.output


def test_the_minutes_of_a_run_are_those_of_all_its_starts(tmp_path):
    """A start of 10 minutes, one without a line, one of 2 minutes, and the days between."""
    started = ["2026-01-30 23:55:00", "2026-02-01 00:00:00", "2026-02-03 10:00:00"]
    calls = [{"started": time} for time in started]
    described = calls[0] | {"resumed": [{"started": "yesterday"}, *calls[1:]]}
    (tmp_path / "args.json").write_text(json.dumps(described))
    assert minutes_of(tmp_path) == 0.0  # no log

    times = ["2026-01-30 23:55:01", "2026-01-31 00:05:00", "2026-02-03 10:02:00"]
    lines = [f"[{time}] a line" for time in times] + ["no time", "[2026-99-99 10:00:00] none"]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert minutes_of(tmp_path) == 12.0
    for damaged in ("[]", "{", '{"resumed": 3}'):
        (tmp_path / "args.json").write_text(damaged)
        assert minutes_of(tmp_path) == 0.0
    assert minutes_of(tmp_path / "nowhere") == 0.0
