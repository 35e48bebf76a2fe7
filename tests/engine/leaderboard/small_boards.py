"""Boards of rows that nobody trains, and what their trainings might have come to."""

from types import SimpleNamespace

import numpy as np

from metric_learning.engine.leaderboard.boards.board import Changes, build_board
from metric_learning.engine.leaderboard.trainings.outcomes import Outcome
from metric_learning.engine.leaderboard.trainings.tasks import WEIGHTS
from metric_learning.engine.run.records import write_scores

FLAGS = {"model": "test_resnet", "image_shape": "3,32,32", "train_batch_size": "16"}
SOFTMAX = {"flags": {"loss_name": "softmax", "total_iter_num": "6", "lr": "0.01"}}
EML = {
    "start": "softmax",
    "flags": {"loss_name": "eml", "samples_each_class": "2", "total_iter_num": "4"},
}
SEARCH = {"lr": ["log", "0.001", "0.1"]}
PROTOCOL = {"folds": "3", "trials": "4", "reserve": "2", "seeds": "2"}
CLASSES, EACH = 8, 3  # of the test


def board_of(rows, *, changes=None, **parts):
    """Build a board of rows, with the small protocol and search unless `parts` has others."""
    found = {"flags": FLAGS, "protocol": PROTOCOL, "search": SEARCH, "rows": rows} | parts
    return build_board("small", found, changes or Changes())


def finish(plan, task, value=0.5, *, failure=None, chance=0.01, seed=0):
    """Write what a training has come to, and its scores of queries if it was tested on the test."""
    folder = plan.output / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).touch()
    metrics = {"recall@1": value, "map@r": value / 2, "recall@1_chance": chance}
    if failure is None and task.fold is None:
        labels = np.repeat(np.arange(CLASSES), EACH)
        values = np.random.default_rng(seed).random(len(labels)) < value
        columns = {"recall@1": values.astype(float), "map@r": values / 2}
        rows = np.arange(len(labels))
        write_scores(folder, SimpleNamespace(rows=rows, labels=labels, columns=columns))
    known = {} if failure else metrics
    Outcome(metrics=known, minutes=1.0, images=96.0, host="here", failure=failure).save(folder)


def finish_all(plan, value_of=lambda task: 0.5):
    """Finish what is open until nothing is left; return the folders in their order."""
    folders = []
    while tasks := plan.open_tasks():
        for task in tasks:
            found = value_of(task)
            if isinstance(found, str):
                finish(plan, task, failure=found)
            else:
                finish(plan, task, found, seed=task.number)
            folders.append(task.folder)
        plan.refresh()
    return folders
