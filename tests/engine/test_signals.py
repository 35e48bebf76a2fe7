"""SIGTERM and SIGINT between two steps, in a test, before the first step, and twice."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
from processes import context
from test_fit import parts_equal

import train_elem
from metric_learning.engine.embed import embedding
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run import signals
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.run.signals import (
    SIGNALS,
    Stopped,
    StopRequest,
    acting_signals,
    noted_signals,
)
from metric_learning.engine.train import stages


@pytest.fixture
def train(tiny_flags):
    """Train a tiny network for 4 steps in a folder; 2 of them are tested."""

    def run(name):
        steps = ["--total_iter_num=4", "--test_iter_step=2", "--save_iter_step=0"]
        batch = ["--test_batch_size=4", f"--run_name={name}", "--checkpoint=auto"]
        return train_elem.main([*tiny_flags, *steps, *batch])

    return run


def kill_self(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_test_is_broken_off_and_made_up_for(train, monkeypatch, tmp_path):
    whole = train("whole")
    batches = []

    def watched(model, loader, *rest):
        kill_self(signal.SIGTERM)
        batches.append(iterations := [])
        return original(model, Watched(loader, iterations), *rest)

    original = embedding.iterate_embeddings
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "iterate_embeddings", watched)
        folder = train("run")
    assert [len(iterations) for iterations in batches] == [2]  # the second is on its way
    assert load_checkpoint(folder / "last.pt")["step"] == 2
    assert load_checkpoint(folder / "last.pt")["tested"] == -1
    assert not (folder / "best.pt").exists() and "test" not in kinds(folder)
    assert "stopped by SIGTERM after step 2" in (folder / "log.txt").read_text()
    train("run")
    assert kinds(folder) == kinds(whole) == ["train"] * 2 + ["test"] + ["train"] * 2 + ["test"]
    ours, theirs = (load_checkpoint(path / "last.pt") for path in (folder, whole))
    for part in ("model", "optimizer", "step", "best", "tested"):
        assert parts_equal(ours[part], theirs[part]), part


class Watched:
    """A loader that notes its batches."""

    def __init__(self, loader, noted):
        self.loader, self.noted = loader, noted

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            self.noted.append(batch)
            yield batch


def kinds(folder):
    return [json.loads(line)["kind"] for line in (folder / "stats.jsonl").open()]


def interrupt(monkeypatch, name, *numbers):
    """Send signals to this process when the stage's function `name` is called."""
    original = getattr(stages.ELEM, name)

    def interrupted(*args):
        kill_self(*numbers)
        return original(*args)

    monkeypatch.setattr(stages, "ELEM", stages.ELEM._replace(**{name: interrupted}))


@pytest.mark.parametrize(("name", "step"), [("make_sampler", 0), ("loss", 1)])
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_a_signal_stops_before_the_next_step(train, monkeypatch, name, step, numbers):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    whole = train("whole")
    with monkeypatch.context() as patch:
        interrupt(patch, name, *numbers)
        folder = train("run")
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert load_checkpoint(folder / "last.pt")["step"] == step
    last_line = (folder / "log.txt").read_text().splitlines()[-1]
    reason = f"stopped by {numbers[0].name} after step {step}"
    assert last_line.endswith(f"{reason}: the same command resumes")
    train("run")
    ours, theirs = (load_checkpoint(path / "last.pt")["model"] for path in (folder, whole))
    assert parts_equal(ours, theirs)


def test_without_auto_the_line_names_the_checkpoint(tiny_flags, monkeypatch):
    interrupt(monkeypatch, "loss", signal.SIGINT)
    folder = train_elem.main([*tiny_flags, "--total_iter_num=4", "--test_iter_step=0"])
    last_line = (folder / "log.txt").read_text().splitlines()[-1]
    assert last_line.endswith(
        f"stopped by SIGINT after step 1: --checkpoint={folder}/last.pt resumes"
    )


def test_a_second_interrupt_stops_at_once(train, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(signals, "GRACE", 100.0)  # of this process
    interrupt(monkeypatch, "loss", signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        train("run")
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.glob("run/*.pt")) and not list(tmp_path.glob("run/.*"))


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_hangup_that_is_ignored_from_the_start_stays_so(handler):
    """As nohup does it; otherwise it is noted."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with noted_signals(World()) as request:
            kill_self(signal.SIGHUP)
            assert request.received == (0 if handler == signal.SIG_IGN else signal.SIGHUP)
            with acting_signals():
                assert signal.getsignal(signal.SIGHUP) == handler
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def compute_for_long(ready):
    """Stay for minutes in one call that is no Python, as a long backward pass does."""
    with noted_signals(World()):
        ready.send(os.getpid())
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


@pytest.mark.parametrize(("numbers", "status"), [("ii", 130), ("itt", None)])
def test_a_second_interrupt_ends_a_long_computation(numbers, status):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=compute_for_long, args=(sender,))
    process.start()
    pid = receiver.recv()
    time.sleep(0.3)
    for number in numbers:
        os.kill(pid, signal.SIGINT if number == "i" else signal.SIGTERM)
        time.sleep(0.1)
    process.join(3 if status is None else 30)
    found = process.exitcode
    process.kill()
    process.join()
    assert found == status


def test_in_another_thread_the_handlers_stay():
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def note():
        with noted_signals(World()) as request:
            assert not request.received
            inside.extend(signal.getsignal(number) for number in SIGNALS)

    inside = []
    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert inside == handlers


def test_agreement_lets_other_errors_pass():
    request = StopRequest(World())
    with request.agreement():
        pass
    request.receive(signal.SIGTERM, None)
    with pytest.raises(KeyError), request.agreement():
        raise KeyError
    with pytest.raises(Stopped, match="SIGTERM"), request.agreement():
        pass
