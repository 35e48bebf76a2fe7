"""Which trainings are to be done when, under which names, and what they come to."""

import json
from pathlib import Path

import pytest
from small_boards import EML, FLAGS, PROTOCOL, SEARCH, SOFTMAX, board_of, finish, finish_all

from metric_learning.engine.leaderboard.boards.board import Changes
from metric_learning.engine.leaderboard.trainings.outcomes import Outcome, read_outcome
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.tasks import OUTPUT, WEIGHTS, digest

ROWS = {"softmax": SOFTMAX}
STAGES = {"softmax": SOFTMAX, "softmax, eml": EML}


def folds_of(tasks):
    return [(task.number, task.fold) for task in tasks]


def test_folds_follow_the_first_one_and_the_reserve_the_trials(tmp_path):
    plan = Plan(board_of(ROWS), tmp_path)
    [row] = plan.board.rows
    assert folds_of(plan.open_tasks()) == [(n, 0) for n in range(4)]
    first = plan.open_tasks()[0]
    finish(plan, first)
    plan.refresh()
    assert folds_of(plan.open_tasks()) == [(0, 1), (0, 2), (1, 0), (2, 0), (3, 0)]

    values = [0.5, 0.6, 0.8, 0.7, 0.4, 0.3]
    while len(plan.search(row).trials) == 4:
        for task in plan.open_tasks():
            finish(plan, task, values[task.number])
        plan.refresh()
    assert plan.search(row).choice is None
    assert folds_of(plan.open_tasks()) == [(4, 0), (5, 0)]

    finish_all(plan, lambda task: values[task.number] if task.fold is not None else 0.5)
    choice = plan.search(row).choice
    assert choice.trial.number == 2 and choice.value == pytest.approx(0.4)  # MAP@R is the half
    finals = plan.finals(row)
    assert folds_of(finals) == [(0, None), (1, None)]
    assert all(task.flags["lr"] == choice.trial.point["lr"] for task in finals)
    assert plan.total() == 6 * 3 + 2 and plan.open_tasks() == []


def test_the_table_does_not_depend_on_who_ends_first(tmp_path):
    def value(task):
        return 0.2 + int(digest("", task.flags | {"model_save_dir": ""})[:4], 16) / 2**17

    board = board_of(STAGES)
    forwards, backwards = Plan(board, tmp_path / "a"), Plan(board, tmp_path / "b")
    folders = finish_all(forwards, value)
    while tasks := backwards.open_tasks():
        finish(backwards, tasks[-1], value(tasks[-1]), seed=tasks[-1].number)
        backwards.refresh()
    for row in board.rows:
        assert forwards.search(row) == backwards.search(row)
        assert forwards.finals(row) == backwards.finals(row)
    found = {
        str(path.parent.relative_to(tmp_path / "b")) for path in tmp_path.glob("b/**/result.json")
    }
    assert found == set(folders) and len(folders) == len(found)


def test_equal_values_choose_the_first_trial(tmp_path):
    plan = Plan(board_of(ROWS), tmp_path)
    finish_all(plan)
    assert plan.search(plan.board.rows[0]).choice.trial.number == 0


def test_the_second_stage_goes_on_from_the_chosen_first_one(tmp_path):
    plan = Plan(board_of(STAGES), tmp_path)
    softmax, eml = plan.board.row("softmax"), plan.board.row("softmax, eml")
    assert {task.row for task in plan.open_tasks()} == {"softmax", "softmax, for 10 steps"}
    while plan.search(softmax).choice is None:
        for task in plan.open_tasks():
            finish(plan, task, 0.5 + 0.1 * (task.number == 1))
        plan.refresh()
    chosen = plan.search(softmax).choice.trial
    assert chosen.number == 1
    for trial in plan.search(eml).trials:
        for task, start in zip(trial.tasks, chosen.tasks, strict=True):
            assert task.flags["pretrained_model"] == f"{OUTPUT}/{start.folder}/last.pt"
            assert task.flags["val_fold"] == start.flags["val_fold"]

    assert plan.finals(eml) == []
    finish_all(plan)
    for task, start in zip(plan.finals(eml), plan.finals(softmax), strict=True):
        assert task.flags["pretrained_model"] == f"{OUTPUT}/{start.folder}/last.pt"
        assert task.flags["seed"] == start.flags["seed"] == str(task.number)


def test_what_is_given_is_not_searched(tmp_path):
    plan = Plan(board_of(STAGES, search={}), tmp_path)
    assert plan.total() == 6
    assert {task.fold for task in plan.open_tasks()} == {None}
    finish_all(plan)
    assert [len(plan.finals(row)) for row in plan.board.rows] == [2, 2, 2]

    # The first stage is trained on folds where the second one has settings to choose.
    second = EML | {"search": {"lr": ["log", "0.001", "0.1"]}}
    plan = Plan(board_of({"softmax": SOFTMAX, "softmax, eml": second}, search={}), tmp_path / "b")
    assert plan.total() == (3 + 2) + (6 * 3 + 2) + 2
    assert len(finish_all(plan)) == plan.total()


def test_a_grid_of_few_choices_is_followed_by_a_larger_reserve(tmp_path):
    search = {"optimizer": ["choice", "sgd", "adamw"]}
    protocol = PROTOCOL | {"search": "grid"}
    plan = Plan(board_of(ROWS, search=search, protocol=protocol), tmp_path)
    assert len(finish_all(plan)) == plan.total() == 6 * 3 + 2


def test_failed_and_dead_trials_are_not_chosen_and_not_continued(tmp_path):
    plan = Plan(board_of(ROWS), tmp_path)
    values = ["no memory", 0.015, 0.6, 0.5, 0.4, 0.3]
    folders = finish_all(plan, lambda task: values[task.number] if task.fold is not None else 0.5)
    [row] = plan.board.rows
    search = plan.search(row)
    assert [plan.value(trial) for trial in search.trials][:3] == [0, 0, pytest.approx(0.3)]
    assert search.choice.trial.number == 2 and search.failure is None
    assert len(folders) == plan.total() - 2 * 2  # the other folds of two trials are left out


@pytest.mark.parametrize(
    ("value", "reason"), [("no memory", "no memory"), (0.015, "no trial is above chance")]
)
def test_a_row_whose_trials_all_fail_ends_and_so_does_what_starts_from_it(tmp_path, value, reason):
    plan = Plan(board_of(STAGES), tmp_path)
    finish_all(plan, lambda task: value if task.row == "softmax" else 0.5)
    assert plan.search(plan.board.row("softmax")).failure == reason
    assert plan.search(plan.board.row("softmax, eml")).failure == "softmax has failed"
    assert len(plan.finals(plan.board.row("softmax, for 10 steps"))) == 2


def test_failed_trainings_are_done_again_when_asked(tmp_path):
    plan = Plan(board_of(ROWS, search={}), tmp_path)
    finish_all(plan, lambda task: "no memory" if task.number else 0.5)
    assert not plan.open_tasks()
    plan.retry()
    assert folds_of(plan.open_tasks()) == [(1, None)]
    finish_all(plan)
    assert Plan(plan.board, tmp_path).outcome(plan.finals(plan.board.rows[0])[1]).failure is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"metrics": {}}',
        '{"metrics": {"map@r": "x"}}',
        '{"metrics": {"map@r": NaN}}',
    ],
)
def test_damaged_outcomes_are_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json.*the training is done again"):
        read_outcome(tmp_path)


def test_an_outcome_without_figures_is_damaged(tmp_path):
    plan = Plan(board_of(ROWS), tmp_path)
    task = plan.open_tasks()[0]
    (tmp_path / task.folder).mkdir(parents=True)
    Outcome(host="here").save(tmp_path / task.folder)
    with pytest.raises(ValueError, match="expected map@r, recall@1"):
        plan.outcome(task)


def test_outcomes_are_read_as_written(tmp_path):
    assert read_outcome(tmp_path) is None
    for outcome in (
        Outcome({"map@r": 0.25, "recall@1": 0.5}, 1.0, 2.0, 3.0, "here"),
        Outcome(host="here", failure="no memory"),
    ):
        outcome.save(tmp_path)
        assert read_outcome(tmp_path) == outcome


@pytest.mark.parametrize(
    ("recall", "chance", "is_dead"),
    [(0.019, 0.01, True), (0.021, 0.01, False), (0.7, 0.6, True), (0.81, 0.6, False)],
)
def test_near_chance_is_dead(recall, chance, is_dead):
    outcome = Outcome({"map@r": 0.1, "recall@1": recall, "recall@1_chance": chance})
    assert outcome.is_dead == is_dead


def folders_of(tmp_path, rows=STAGES, **parts):
    return {
        task.row: task.folder
        for task in reversed(Plan(board_of(rows, **parts), tmp_path).open_tasks())
    }


def test_equal_trainings_have_equal_folders(tmp_path):
    whole = folders_of(tmp_path)
    assert folders_of(tmp_path) == whole
    more = folders_of(tmp_path, {**STAGES, "arcmargin": SOFTMAX})
    assert {name: more[name] for name in whole} == whole
    seeds = folders_of(tmp_path, protocol=PROTOCOL | {"seeds": "7"})
    assert seeds == whole


@pytest.mark.parametrize(
    "parts",
    [
        {"flags": FLAGS | {"train_batch_size": "20"}},
        {"flags": FLAGS | {"weight_decay": "0"}},
        {"data": {"dataset": "demo"}},
        {"protocol": PROTOCOL | {"folds": "4"}},
        {"protocol": PROTOCOL | {"closed": "true"}},
        {"changes": Changes(budget=2.0)},
        {"search": {"lr": ["log", "0.001", "0.2"]}},
    ],
)
def test_other_trainings_have_other_folders(tmp_path, parts):
    found = folders_of(tmp_path, {"softmax": SOFTMAX}, **parts)
    assert found["softmax"] != folders_of(tmp_path, {"softmax": SOFTMAX})["softmax"]


def test_another_start_is_another_second_stage(tmp_path):
    found = []
    for rate in ("0.01", "0.02"):
        first = {"flags": SOFTMAX["flags"] | {"lr": rate}}
        plan = Plan(board_of({"softmax": first, "softmax, eml": EML}, search={}), tmp_path)
        finish_all(plan)
        found.append({task.folder for task in plan.finals(plan.board.row("softmax, eml"))})
    assert not set.intersection(*found)


def test_rows_with_seeds_of_their_own_share_none(tmp_path):
    rows = {"a": SOFTMAX, "b": SOFTMAX | {"seed": "1"}}
    plan = Plan(board_of(rows, search={}), tmp_path)
    seeds = [[task.flags["seed"] for task in plan.finals(row)] for row in plan.board.rows]
    assert seeds == [["0", "1"], ["1000", "1001"]]
    plan = Plan(board_of(rows), tmp_path)
    points = [plan.search(row).trials[0].point for row in plan.board.rows]
    assert points[0] != points[1]


def test_commands_name_the_folder_where_it_lies_now(tmp_path):
    task = Plan(board_of(ROWS), tmp_path).open_tasks()[1]
    words = task.words(Path("elsewhere"))
    assert f"--model_save_dir=elsewhere/{Path(task.folder).parent}" in words
    assert f"--run_name={Path(task.folder).name}" in words
    assert {"--val_fold=0/3", "--checkpoint=auto", "--seed=0"} <= set(words)


def test_closed_sets_have_folds_of_images(tmp_path):
    plan = Plan(board_of(ROWS, protocol=PROTOCOL | {"closed": "true"}), tmp_path)
    assert {task.flags["val_fold"] for task in plan.open_tasks()} == {"0/3:images"}


def suggest_middle(space, finished, seed):
    return {p.name: p.at(0.3 + 0.1 * len(finished)) for p in space}


def test_suggestions_are_kept_for_the_same_search_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("metric_learning.engine.leaderboard.trainings.plan.suggest", suggest_middle)
    protocol = PROTOCOL | {"search": "tpe"}
    plan = Plan(board_of(ROWS, protocol=protocol), tmp_path)
    assert folds_of(plan.open_tasks()) == [(0, 0)]  # each waits for those before
    assert len(finish_all(plan)) == plan.total()
    points = [trial.point for trial in plan.search(plan.board.rows[0]).trials]
    monkeypatch.setattr("metric_learning.engine.leaderboard.trainings.plan.suggest", None)
    again = Plan(board_of(ROWS, protocol=protocol), tmp_path)
    assert [trial.point for trial in again.search(again.board.rows[0]).trials] == points

    monkeypatch.setattr("metric_learning.engine.leaderboard.trainings.plan.suggest", suggest_middle)
    wider = SEARCH | {"weight_decay": ["log", "0.0001", "0.01"]}
    other = Plan(board_of(ROWS, protocol=protocol, search=wider), tmp_path)
    assert "weight_decay" in other.search(other.board.rows[0]).trials[0].point


def test_a_damaged_suggestion_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("metric_learning.engine.leaderboard.trainings.plan.suggest", suggest_middle)
    board = board_of(ROWS, protocol=PROTOCOL | {"search": "tpe"})
    Plan(board, tmp_path).open_tasks()
    [file] = tmp_path.glob("points/*/0.json")
    for content in ("", json.dumps({"rate": "1"})):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"0\.json"):
            Plan(board, tmp_path).open_tasks()


def test_optuna_suggests_the_same_to_all():
    pytest.importorskip("optuna")
    from metric_learning.engine.leaderboard.boards.space import parse_parameter, suggest

    space = (parse_parameter("lr", SEARCH["lr"]), parse_parameter("n", ["integer", "1", "9"]))
    finished = []
    for number in range(14):
        point = suggest(space, finished, 3)
        assert point == suggest(space, finished, 3)
        finished.append((point, 1.0 - abs(space[0].place_of(point["lr"]) - 0.25)))
        assert len(finished) == number + 1
    best = max(finished, key=lambda pair: pair[1])
    assert best[1] > 0.9


def test_a_loss_on_pairs_tests_no_start_that_it_has_not(tmp_path):
    alone = {"flags": EML["flags"]}
    loaded = {"flags": EML["flags"] | {"pretrained_model": "weights.pt"}}
    rows = STAGES | {"alone": alone, "loaded": loaded}
    plan = Plan(board_of(rows, search={}), tmp_path)
    finish_all(plan)
    starts = {row.name: plan.finals(row)[0].flags.get("test_start") for row in plan.board.rows}
    assert starts == {
        **{"softmax": None, "alone": None, "loaded": "False", "softmax, eml": "False"},
        "softmax, for 10 steps": None,
    }


def test_weights_that_no_training_goes_on_from_are_spent(tmp_path):
    alone = Plan(board_of(ROWS), tmp_path)
    finish_all(alone)
    trials = [task for trial in alone.search(alone.board.rows[0]).trials for task in trial.tasks]
    assert alone.spent_weights() == [tmp_path / task.folder / WEIGHTS for task in trials]

    both = Plan(board_of(STAGES), tmp_path)
    softmax = both.board.row("softmax")
    chosen = both.search(softmax).choice.trial
    finish_all(both)
    spent = {path.parent for path in both.spent_weights()}
    assert not spent & {tmp_path / task.folder for task in chosen.tasks}
    assert {
        tmp_path / task.folder
        for trial in both.search(softmax).trials
        for task in trial.tasks
        if trial.number != chosen.number
    } <= spent


def test_a_row_that_is_added_has_the_weights_made_again_that_it_goes_on_from(tmp_path):
    alone = Plan(board_of(ROWS), tmp_path)
    finish_all(alone)
    for path in alone.spent_weights():
        path.unlink()

    both = Plan(board_of(STAGES), tmp_path)
    chosen = alone.search(alone.board.rows[0]).choice.trial
    both.search(both.board.row("softmax, eml"))
    both.refresh()
    assert [t.folder for t in both.open_tasks() if t.row == "softmax"] == [chosen.tasks[0].folder]
    finish_all(both)
    assert both.search(both.board.row("softmax, eml")).choice is not None
    assert both.search(both.board.row("softmax")).choice.trial == chosen
