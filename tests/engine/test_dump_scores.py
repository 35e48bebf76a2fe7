"""The best classes of each image, which a dump holds where the checkpoint is of stage 1."""

import csv
import filecmp
import json
import os

import numpy as np
import pytest
import torch
from processes import TINY, wait_until
from sharing import end_well, launch

import infer
import train_elem
from metric_learning import open_features
from metric_learning.common.flags import last_of_each
from metric_learning.engine.embed.dump.work import best_classes

NUM_IMAGES = 40


@pytest.fixture(scope="module")
def checkpoint(toy_flags, tmp_path_factory):
    """A stage-1 checkpoint of six classes."""
    words = [*toy_flags, *TINY, "--total_iter_num=1", "--test_iter_step=0"]
    folder = tmp_path_factory.mktemp("run")
    return train_elem.main(last_of_each([*words, f"--model_save_dir={folder}"])) / "last.pt"


@pytest.fixture(scope="module")
def flags(checkpoint):
    words = [f"--pretrained_model={checkpoint}", "--use_gpu=False", "--num_workers=0"]
    return [*words, "--batch_size=3", "--split=all", "--print_features=False"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    return infer.main([*flags, f"--output_dir={tmp_path_factory.mktemp('whole') / 'dump'}"])


def read_rows(folder):
    rows = []
    for file in sorted(folder.glob("scores*.csv")):
        rows += csv.DictReader(file.open(encoding="utf-8", newline=""))
    return rows


def test_the_five_best_classes_by_name(checkpoint, whole):
    found = open_features(whole)
    state = torch.load(checkpoint, weights_only=True)
    unit = torch.nn.functional.normalize
    features = torch.from_numpy(np.array(found.embeddings))
    scores = 80 * unit(features) @ unit(state["criterion"]["weight"]).T
    names = [f"class_{label}" for label in range(6)]
    assert state["meta"]["class_names"] == names

    rows = read_rows(whole)
    assert [row["path"] for row in rows] == found.paths and len(rows) == NUM_IMAGES
    for row, expected in zip(rows, scores, strict=True):
        values, classes = expected.sort(descending=True)
        assert [row[f"class_{n}"] for n in range(1, 6)] == [names[c] for c in classes[:5]]
        shown = [float(row[f"score_{n}"]) for n in range(1, 6)]
        assert shown == pytest.approx(values[:5].tolist(), abs=2e-4)
    assert sorted(os.listdir(whole)) == [
        *("features.npy", "labels.txt", "meta.json", "paths.txt", "scores.csv")
    ]


def test_one_process_killed_goes_on_as_two_and_three(flags, whole, tmp_path):
    folder = tmp_path / "dump"
    words = last_of_each([*flags, f"--output_dir={folder}"])
    for number, num_processes in enumerate((1, 3), start=1):
        processes = launch(words, num_processes, sync_seconds=0)
        wait_until(lambda number=number: noted(folder) >= number)
        for process in processes:
            process.kill()
            process.join()
    end_well(launch(words, 2))
    names = ["features.npy", "paths.txt", "scores.csv"]
    assert filecmp.cmpfiles(folder, whole, names, shallow=False) == (names, [], [])


def noted(folder):
    """How many parts of the work are noted as done."""
    files = (folder / "partial").glob("done*.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def test_shards_and_parquet_hold_the_same(flags, whole, tmp_path, broken_off):
    parquet = pytest.importorskip("pyarrow.parquet")
    words = [*flags, "--shard_size=25", "--parquet=True", f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 3)
    folder = infer.main(words)
    rows = read_rows(whole)
    assert read_rows(folder) == rows and len([*folder.glob("scores-0000?-of-00002.csv")]) == 2
    table = [row for n in (0, 1) for row in read_parquet(parquet, folder, n)]
    for row, expected in zip(table, rows, strict=True):
        assert row["path"] == expected["path"]
        assert row["classes"] == [expected[f"class_{n}"] for n in range(1, 6)]
        scores = [f"{score:.6f}" for score in row["scores"]]
        assert scores == [expected[f"score_{n}"] for n in range(1, 6)]


def read_parquet(parquet, folder, number):
    return parquet.read_table(folder / f"features-{number:05}-of-00002.parquet").to_pylist()


def test_unreadable_images_have_no_row(checkpoint, toy_tree, tmp_path):
    images = [str(file) for file in sorted((toy_tree / "test").glob("*/*.png"))]
    gone = str(tmp_path / "gone.png")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([*images[:3], gone, *images[3:]]))
    folder = infer.main(
        [f"--pretrained_model={checkpoint}", f"--images={listed}", "--on_bad_image=skip"]
        + ["--num_workers=0", f"--output_dir={tmp_path / 'dump'}"]
    )
    assert [row["path"] for row in read_rows(folder)] == images
    assert list(json.loads((folder / "meta.json").read_text())["broken"]) == [gone]


def test_other_class_weights_are_other_work(checkpoint, flags, tmp_path, broken_off, error_of):
    """The network is the same, so that its features are, but the scores are not."""
    state = torch.load(checkpoint, weights_only=True)
    state["criterion"]["weight"] += 1
    other = tmp_path / "other.pt"
    torch.save(state, other)
    words = [*flags, f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 3)
    assert "its class layer (" in error_of(infer.main, [*words, f"--pretrained_model={other}"])


def test_equal_scores_come_by_their_number():
    scores = torch.tensor([[1.0, 3, 3, 2, 3, 0], [0, 0, 0, 0, 0, 1]])
    found = best_classes(scores, 5)
    assert found["classes"][0].tolist() == [1, 2, 4, 3, 0] and found["classes"][1][0] == 5
    assert found["scores"][0].tolist() == [3, 3, 3, 2, 1]
    ahead = found["classes"][1][1:]
    assert ahead.tolist() == sorted(ahead.tolist())
