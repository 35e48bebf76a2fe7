"""Fixtures of the tests that kill training runs."""

import pytest
from processes import TINY, TrainingProcess


@pytest.fixture
def start(tmp_path):
    """Start a training script with flags in a process of its own; none outlives the test."""
    processes = []

    def start_one(*flags, script="train_elem", **options):
        output = tmp_path / f"output_{len(processes)}.txt"
        processes.append(TrainingProcess(script, flags, output, **options))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()


@pytest.fixture
def tiny_flags(toy_flags, tmp_path):
    """Flags of a run of a tiny network, which writes to the temporary folder."""
    return [
        *(flag for flag in toy_flags if not flag.startswith("--model=")),
        *TINY,
        f"--model_save_dir={tmp_path}",
    ]
