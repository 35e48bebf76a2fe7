"""A server of a small index, in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

import infer
from metric_learning.models import build_model

ROOT = Path(__file__).resolve().parents[2]


def make_index(folder, toy_tree):
    """Build an index of the toy tree's test images by a tiny model, and return its file."""
    weights, file = folder / "weights.pth", folder / "toy.index"
    torch.manual_seed(0)
    torch.save(build_model("test_resnet").state_dict(), weights)
    flags = ["--model=test_resnet", "--image_shape=3,32,32", "--use_gpu=False", "--num_workers=0"]
    flags += ["--dataset=folder", f"--data_dir={toy_tree}", f"--pretrained_model={weights}"]
    infer.main([*flags, f"--index={file}"])
    return file


@contextlib.contextmanager
def served(file, *flags):
    """Serve an index: yields the address of the page and the process."""
    command = [sys.executable, "-m", "metric_learning", "serve", f"--index={file}", "--port=0"]
    process = subprocess.Popen(
        [*command, "--use_gpu=False", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.match(r"open (http://\S+)", line):
                yield found[1].rstrip("/"), process
                break
        else:
            raise AssertionError(f"{''.join(lines)}{process.stderr.read()}")
    finally:
        process.kill()
        process.communicate()
