"""What a run needs: memory before the first step, time in every line."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_elem
import train_pair
from metric_learning.common.memory import free_memory
from metric_learning.engine.run.lines import duration
from metric_learning.engine.train import needs
from metric_learning.engine.train.needs import Pace
from metric_learning.engine.train.optimizers import OPTIMIZERS

GB = 10**9


def group(folder: Path, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def system(tmp_path):
    """The files by which Linux tells of memory: 8 GB, this process in the groups /job/step."""
    process = tmp_path / "proc" / "self"
    group(process.parent, {"meminfo": "MemTotal: 9000000 kB\nMemAvailable:  8000000 kB\n"})
    group(process, {"cgroup": "4:memory:/job/step\n0::/job/step\n", "statm": "1000 1 1"})
    return process, tmp_path / "cgroup"


def test_free_memory_is_that_of_the_machine_or_of_the_tightest_group(system):
    process, groups = system
    assert free_memory(*system) == 8_192_000_000
    new = {"memory.max": str(6 * GB), "memory.current": str(5 * GB)}
    group(groups / "job", new | {"memory.stat": f"anon 1\ninactive_file {GB}\n"})
    group(groups / "job" / "step", {"memory.max": "max\n", "memory.current": str(GB)})
    assert free_memory(*system) == 2 * GB
    old = {"memory.limit_in_bytes": str(3 * GB), "memory.usage_in_bytes": str(2 * GB)}
    group(groups / "memory" / "job" / "step", old)
    assert free_memory(*system) == GB
    assert free_memory(process / "nothing" / "self", groups) is None


@pytest.mark.parametrize("script", [train_elem, train_pair], ids=["elem", "pair"])
def test_a_step_that_does_not_fit_is_refused_before_it(
    script, toy_flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(needs, "free_memory", lambda: 60_000_000)
    loss = ["--loss_name=softmax"]
    if script is train_pair:
        loss = ["--loss_name=supcon", "--samples_each_class=4"]
    with pytest.raises(SystemExit) as stop:
        script.main([*toy_flags, *loss, "--train_batch_size=24", f"--model_save_dir={tmp_path}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "a step of 24 images of 32 px takes about" in error and "0.1 GB are free" in error
    assert not list(tmp_path.iterdir())  # no run folder that a second try would meet


def test_a_step_that_nearly_fits_is_warned_about_with_a_chunk_that_does(
    tiny_flags, monkeypatch, capsys
):
    rss = {}
    real = needs.activation_bytes
    monkeypatch.setattr(
        needs, "activation_bytes", lambda *given: rss.setdefault("image", real(*given))
    )
    flags = [*tiny_flags, "--train_batch_size=24", "--total_iter_num=1", "--test_iter_step=0"]
    monkeypatch.setattr(needs, "free_memory", lambda: 10**12)
    train_elem.main([*flags, "--run_name=enough"])
    assert "of memory" not in capsys.readouterr().out
    monkeypatch.setattr(needs, "free_memory", lambda: int(24 * rss["image"] + 4_500_000))
    train_elem.main([*flags, "--run_name=scarce"])
    assert "warning: a step of 24 images of 32 px" in capsys.readouterr().out


def test_the_estimate_leaves_no_trace_and_counts_what_autograd_keeps():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, images):
            return torch.dropout(self.norm(images), 0.5, True).exp().flatten(1)

    model = Network()
    before = torch.get_rng_state()
    found = needs.activation_bytes(model, 64, None)
    assert torch.equal(torch.get_rng_state(), before) and int(model.norm.num_batches_tracked) == 0
    image = 3 * 64 * 64 * 4
    # Input and output of batch norm or exp, a mask of bytes or floats, and two gradients.
    assert 4 * image <= found <= 6 * image
    assert set(needs.STATES) == set(OPTIMIZERS.values())


def test_the_estimate_keeps_no_weights():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    needs.activation_bytes(model, 8, None)
    weight = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert weight() is None


def test_the_end_is_told_by_steps_and_tests():
    pace = Pace(total=100, test_every=30)
    assert pace.seconds_left(1) == 0
    pace.step_seconds = 2.0
    pace.test_seconds = 5.0
    assert pace.seconds_left(2) == 98 * 2 + 4 * 5
    assert pace.seconds_left(90) == 10 * 2 + 5
    assert pace.seconds_left(100) == 0
    assert pace.caveats(2) == []
    assert duration(3 * 24 * 3600 + 61) == "72:01:01"


def test_days_are_warned_about_once():
    pace = Pace(total=30_000, test_every=0)
    pace.step_seconds = 60.0
    [line] = pace.caveats(2)
    assert "at 60.0 sec a step the 29998 to come take 21 days" in line
    assert pace.caveats(3) == []


def test_a_gpu_that_waits_for_images_is_told_of_once():
    pace = Pace(total=100, test_every=0)
    gpu = SimpleNamespace(device=torch.device("cuda"), num_workers=2)
    assert pace.reading_caveats(1.0, gpu) == []  # before the time of a step is known
    pace.step_seconds = 2.0
    assert pace.reading_caveats(0.1, gpu) == []
    assert pace.reading_caveats(1.0, SimpleNamespace(device=torch.device("cpu"))) == []
    [line] = pace.reading_caveats(1.0, gpu)
    assert "wait 50% of their time for images: raise --num_workers (it is 2)" in line
    assert pace.reading_caveats(1.0, gpu) == []
