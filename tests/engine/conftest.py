"""How tests start torchrun, training runs that they kill, and a browser."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser
from processes import TINY, TrainingProcess

import infer
from metric_learning.common.flags import last_of_each
from metric_learning.engine.embed.dump.partial import Journal

ROOT = Path(__file__).resolve().parent.parent.parent


def launch(command, num_processes=2, num_nodes=1):
    """Start a script under torchrun, on nodes that are all this machine: one Popen per node."""
    launchers = [["--standalone", f"--nproc_per_node={num_processes}"]]
    if num_nodes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        nodes = [f"--nnodes={num_nodes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        processes = f"--nproc_per_node={num_processes}"
        launchers = [[*nodes, f"--node_rank={node}", processes] for node in range(num_nodes)]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *launcher, *last_of_each(command)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for launcher in launchers
    ]


def stop(agents):
    """Kill what still runs; torchrun ends the processes that it started."""
    for agent in agents:
        agent.terminate()
        agent.communicate()


@pytest.fixture(scope="session")
def torchrun():
    """Run a script under torchrun, see `launch`; it must end well."""

    def run(command, num_processes=2, num_nodes=1):
        agents = launch(command, num_processes, num_nodes)
        try:
            for agent in agents:
                errors = agent.communicate(timeout=300)[1]
                assert agent.returncode == 0, errors
        finally:
            stop(agents)

    return run


@pytest.fixture
def start_torchrun():
    """Start a script under torchrun, see `launch`; what runs at the end of the test is stopped."""
    agents = []

    def start_and_remember(command, num_processes=2, num_nodes=1):
        agents.extend(launch(command, num_processes, num_nodes))
        return agents

    yield start_and_remember
    stop(agents)


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def broken_off(monkeypatch):
    """Run infer.py and break it off when so many parts are done."""

    def run(flags, num_parts):
        add = Journal.add

        def add_some(journal, chunk, *rest):
            nonlocal num_parts
            num_parts -= 1
            if num_parts < 0:
                raise KeyboardInterrupt
            add(journal, chunk, *rest)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(Journal, "add", add_some)
            infer.main(flags)
        assert stop.value.code == 130

    return run
