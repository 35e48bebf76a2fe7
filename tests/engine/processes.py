"""Training runs as processes of their own, which can be killed.

They are forked from a server that has imported the scripts once, which takes seconds, and has
computed nothing: threads of a computation would not survive a fork.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from metric_learning.common.flags import last_of_each

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 120  # seconds until a test gives up
# A network of 0.4 million weights: its checkpoints are written in no time.
TINY = ["--model=test_resnet", "--loss_name=arcmargin", "--train_batch_size=8", "--lr=0.01"]
TINY += ["--display_iter_step=1"]

# What trainings import is imported once; the scripts alone import it only when they train.
PRELOADED = ["train_elem", "train_pair", "metric_learning.engine.train.train"]


class TrainingProcess:
    """A process that runs a training script; its output is that of stdout and stderr."""

    def __init__(self, script, flags, output, max_file_size=resource.RLIM_INFINITY):
        self.output_file = output
        self._process = context().Process(
            target=_run, args=(script, last_of_each(flags), str(output), max_file_size)
        )
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def output(self):
        return self.output_file.read_text() if self.output_file.exists() else ""

    def wait_for(self, text, count=1):
        """Return when the output holds the text so many times, or the process has ended."""
        wait_until(lambda: self.output.count(text) >= count or not self._process.is_alive())

    def is_alive(self):
        return self._process.is_alive()

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        """Return the exit status; of a killed process the signal's number, negative."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self):
        self._process.kill()
        self._process.join()


def wait_until(is_true):
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def context():
    """Return what makes processes that are forked from the server; start it if it is not there."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the server's, before Python 3.12 finds it itself
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def _run(script, flags, output, max_file_size):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    multiprocessing.set_start_method("fork", force=True)  # as where no server was
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though the tests may run under nohup
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, resource.RLIM_INFINITY))
    importlib.import_module(script).main(flags)
