"""The benchmark of reading: a whole run on tiny images, and its arithmetic."""

import numpy as np
import pytest
import torch

from benchmarks.speed.reader import WAYS, Work, image_set_of, main, table, write_images

TINY = ["--images=5", "--size=60,80", "--crop_size=16", "--batch_size=2", "--rounds=1"]


def test_whole_run(capsys):
    threads = torch.get_num_threads()
    rounds = main(TINY)
    assert torch.get_num_threads() == threads
    assert list(rounds) == list(WAYS)
    assert all(found[0]["wall_seconds"] > 0 for found in rounds.values())
    printed = capsys.readouterr().out
    assert "5 synthetic JPEG files of 80 x 60 pixels" in printed
    for name in WAYS:
        assert f"\n| {name} | " in printed and f"\n- `{name}`: " in printed


@pytest.mark.parametrize("name", WAYS)
def test_every_way_yields_all_images(name, tmp_path):
    write_images(tmp_path, 5, (60, 80), seed=1)
    paths = sorted(str(path) for path in tmp_path.glob("*.jpg"))
    read = WAYS[name].prepare(Work(image_set_of(paths), 2, 16, tmp_path, 32))
    for _ in range(2):
        batches = [
            batch if isinstance(batch, torch.Tensor) else batch.crop(torch.device("cpu"))
            for batch in read()
        ]
        assert [batch.shape for batch in batches] == [(n, 3, 16, 16) for n in (2, 2, 1)]
    values = torch.cat(batches)
    if name.endswith("for_gpu"):
        assert values.dtype == torch.uint8
    else:  # noise around grey, normalised
        assert values.dtype == torch.float32
        assert abs(values.mean()) < 0.8 and 0.3 < values.std() < 1.5


def test_synthetic_images_are_like_photographs(tmp_path):
    write_images(tmp_path, 3, (400, 500), seed=0)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert 45_000 < np.mean(sizes) < 65_000


def test_table_counts_the_best_round():
    rounds = {
        "pillow_v1": [{"cpu_seconds": s, "wall_seconds": s} for s in (2.0, 1.0)],
        "standard": [{"cpu_seconds": 0.5, "wall_seconds": 1.0}] * 2,
    }
    lines = table(100, rounds).splitlines()
    assert lines[2] == "| pillow_v1 | 100 | 1.00 | 100 | 50, 100 |"
    assert lines[3] == "| standard | 200 | 2.00 | 100 | 200, 200 |"
    del rounds["pillow_v1"]
    assert "| standard | 200 |  | 100 |" in table(100, rounds)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=standart"], "found 'standart'"),
        (["--size=3"], "expected HEIGHT,WIDTH, found '3'"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*TINY[:1], *flags])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
