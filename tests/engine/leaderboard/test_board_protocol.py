"""The protocol on boards of freshly drawn data: what is equal, and what is not, is called so."""

import numpy as np
import pytest

from metric_learning.data.make_demo import make_demo
from metric_learning.engine.leaderboard.boards.board import Changes, build_board
from metric_learning.engine.leaderboard.tables.results import read_scores_of
from metric_learning.engine.leaderboard.tables.standings import contrast, holm
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.work import Place, work

REPETITIONS, SEEDS = 20, 3
CLASSES, VIEWS = 60, 6  # half of the classes to train
FLAGS = {
    **{"model": "test_resnet", "image_shape": "3,32,32", "min_crop_area": "0.5"},
    **{"use_gpu": "false", "num_workers": "0", "optimizer": "adamw", "lr_strategy": "cosine_decay"},
    **{"train_batch_size": "24", "total_iter_num": "60", "lr": "0.006", "loss_name": "softmax"},
}
# Pairs of rows, and in how many of 20 repetitions they may or must be called different.
EQUAL = (("good", "again"), ("random labels", "other random labels"))
DIFFERENT = ("frozen", "good")


def write_lists(folder, rng):
    """Write the images with their labels, and twice with other labels of training; the files."""
    lines = {}
    for split in ("train", "test"):
        text = (folder / f"Ebay_{split}.txt").read_text().splitlines()[1:]
        lines[split] = [(line.split()[3], line.split()[1]) for line in text]
    paths, labels = zip(*lines["train"], strict=True)

    files = [folder.parent / f"{folder.name}_{number}.csv" for number in range(3)]
    for number, file in enumerate(files):
        given = rng.permutation(labels) if number else labels
        rows = [f"{folder.name}/{p},{c},train" for p, c in zip(paths, given, strict=True)]
        rows += [f"{folder.name}/{path},{label},test" for path, label in lines["test"]]
        file.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return files


def compare_rows(folder, number):
    """Train the rows on data of a number, and return Recall@1's contrast of each pair."""
    make_demo(folder / f"data{number}", CLASSES, VIEWS, 32, seed=number)
    true, *shuffled = write_lists(folder / f"data{number}", np.random.default_rng(number))
    rows = {
        "frozen": {"frozen": "true", "seed": str(number)},
        "good": {"seed": str(4 * number)},
        "again": {"seed": str(4 * number + 1)},
    }
    for place, (name, file) in enumerate(zip(EQUAL[1], shuffled, strict=True)):
        flags = {"csv": str(file), "total_iter_num": "20"}  # there is nothing to learn
        rows[name] = {"seed": str(4 * number + 2 + place), "flags": flags}
    found = {
        "data": {"dataset": "csv", "csv": str(true)},
        "flags": FLAGS,
        "protocol": {"seeds": str(SEEDS)},
        "search": {},
        "rows": rows,
    }
    plan = Plan(build_board("small", found, Changes()), folder / f"board{number}")
    work(plan, Place())
    plan.refresh()
    scores = {row.name: read_scores_of(plan, row) for row in plan.board.rows}
    return [
        contrast(scores[first], scores[second], "recall@1") for first, second in (*EQUAL, DIFFERENT)
    ]


@pytest.mark.slow
def test_equal_rows_are_equal_and_a_good_one_is_good(tmp_path):
    called = np.zeros(len(EQUAL) + 1, np.int64)
    for number in range(REPETITIONS):
        contrasts = compare_rows(tmp_path, number)
        called += np.array(holm([found.p for found in contrasts])) <= 0.05
        told = [f"{found.difference:+.3f} (p {found.p:.4f})" for found in contrasts]
        print(f"{number}: {', '.join(told)}; called different so far: {called}", flush=True)
    assert (called[:-1] <= 3).all() and called[-1] >= 18, called
