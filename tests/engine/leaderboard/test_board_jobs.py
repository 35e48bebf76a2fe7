"""Boards that a batch system computes, by submitit's executor of local jobs."""

import json
import os
import subprocess
import sys

import pytest
from processes import ROOT

from metric_learning.data.make_demo import make_demo

BOARD = """
data: {{dataset: demo, data_dir: {data}}}
flags: {{model: test_resnet, image_shape: "3,32,32", num_workers: 0, use_gpu: false}}
protocol: {{seeds: 2}}
search: {{}}
rows:
  untrained: {{frozen: true}}
  softmax: {{flags: {{loss_name: softmax, train_batch_size: 16, total_iter_num: 2}}}}
"""


@pytest.mark.slow
def test_jobs_of_submitit_do_a_board(tmp_path):
    pytest.importorskip("submitit")
    make_demo(tmp_path / "demo", 40, 4, 32)
    file = tmp_path / "small.yaml"
    file.write_text(BOARD.format(data=tmp_path / "demo"))
    words = [f"--board={file}", f"--output_dir={tmp_path / 'out'}", "--jobs=2", "--launcher=local"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, "leaderboard.py", *words, "--launcher_option=timeout_min=5"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        check=True,
        timeout=300,
    )
    found = json.loads((tmp_path / "out" / "board.json").read_text())
    assert found["is_finished"] and all("figures" in row for row in found["rows"])
    assert list((tmp_path / "out" / "jobs").iterdir())
