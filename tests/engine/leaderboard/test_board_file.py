"""Boards as their files have them: what is read, and what is refused in one line."""

import pytest
from small_boards import EML, FLAGS, PROTOCOL, SEARCH, SOFTMAX, board_of

import leaderboard
from metric_learning.engine.leaderboard.boards.board import (
    Changes,
    build_board,
    default_space,
    read_board,
)
from metric_learning.engine.leaderboard.boards.lengths import longer, scaled, shortest, stretched

GOOD = """
data: {dataset: demo}
flags: {model: test_resnet, image_shape: "3,32,32", train_batch_size: 16, lr: 0.01}
rows:
  softmax: {flags: {loss_name: softmax, total_iter_num: 6}}
"""


@pytest.fixture
def refused(tmp_path, error_of):
    """Run a board that must be refused, and return the line, which names the file."""

    def run(text, *flags):
        file = tmp_path / "small.yaml"
        file.write_text(text)
        error = error_of(leaderboard.main, [f"--board={file}", *flags])
        assert str(file) in error
        return error

    return run


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ["expected lines of `name: value`"]),
        ("rows: {}", ["expected rows, found none"]),
        ("title: empty", ["expected rows, found none"]),
        ("rows: [a, b]", ["rows: expected lines"]),
        ("rows: {a: b}", ["a: expected lines"]),
        ("rows: {a: }", ["a: expected lines"]),
        (GOOD + "row: {}", ["the board: unknown row; expected title, data"]),
        (GOOD + "  softmax: {}", ["softmax is given twice"]),
        (GOOD + "  b: {flag: {}}", ["row b: unknown flag"]),
        (GOOD + "  b: {flags: {total_iter_num: 6}}", ["row b: expected a loss_name"]),
        (GOOD + "  b: {flags: {loss_name: {a: 1}}}", ["row b: loss_name: expected a text"]),
        (GOOD + "  b: {start: c, flags: {loss_name: eml}}", ["row b: no row c to start from"]),
        (GOOD + "  b: {seed: x, flags: {loss_name: softmax}}", ["row b: seed: expected a num"]),
        (
            GOOD + "  b: {flags: {loss_name: softmax, lr: x}}",
            ["row b: search: lr: expected a numb"],
        ),
        (
            GOOD + "  b: {flags: {loss_name: softmax}, search: {lr: 1}}",
            ["row b", "expected a li"],
        ),
        (
            GOOD + "  b: {flags: {loss_name: softmax}, search: {lr: [log, 1]}}",
            ["row b: search: lr"],
        ),
        (GOOD + '  "a\\nb": {flags: {loss_name: softmax}}', ["name of printable letters"]),
        (GOOD + '  " ": {flags: {loss_name: softmax}}', ["name of printable letters"]),
        (GOOD + "  Softmax: {flags: {loss_name: softmax}}", ["would share a folder: rename one"]),
        (GOOD + "protocol: {fold: 3}", ["protocol: unknown fold"]),
        (GOOD + "protocol: {folds: 1}", ["protocol: folds: expected at least 2, found 1"]),
        (GOOD + "protocol: {seeds: 0}", ["protocol: seeds: expected at least 1, found 0"]),
        (GOOD + "protocol: {trials: many}", ["protocol: trials: expected at least 1"]),
        (GOOD + "protocol: {search: random}", ["protocol: search: expected one of sobol"]),
        (GOOD + "protocol: {baseline: b}", ["protocol: no row b, the baseline"]),
        (GOOD + "images: {train: many}", ["train: expected a whole number"]),
        (GOOD + "  b: {config: nowhere.yaml}", ["row b: config nowhere.yaml: No such file"]),
        (GOOD + "  b: {config: configs/boards/demo.yaml}", ["config configs/boards/demo.yaml"]),
        (GOOD + "  b: {config: configs/photos.yaml, flag: {}}", ["row b: unknown flag"]),
        (
            GOOD + "  b: {start: softmax, flags: {loss_name: eml, num_epochs: 2}}",
            ["row b, which starts from softmax: expected num_epochs of both"],
        ),
        (
            GOOD + "  b: {start: c, flags: {loss_name: eml, total_iter_num: 2}}\n"
            "  c: {start: b, flags: {loss_name: eml, total_iter_num: 2}}",
            ["starts, by way of others, from itself"],
        ),
        (
            GOOD + "  b: {frozen: true}\n  c: {start: b, flags: {loss_name: eml}}",
            ["row c: starts from b, but one of them is frozen"],
        ),
    ],
)
def test_what_is_wrong_in_a_board_is_named(refused, text, reasons):
    error = refused(text)
    assert all(reason in error for reason in reasons), error


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{flags: {loss_name: nothing, total_iter_num: 2}}", "row b: "),
        ("{flags: {loss_name: softmax, total_iter_num: 2, margin: 1}}", "row b: "),
        ("{flags: {loss_name: softmax, total_iter_num: 2, seed: 1}}", "row b: seed is set by the"),
        ("{flags: {loss_name: softmax, total_iter_num: 2, no_flag: 1}}", "row b: "),
        ("{flags: {loss_name: softmax}, search: {no_flag: [log, 1, 2]}}", "row b: "),
    ],
)
def test_flags_that_a_script_would_not_take_name_their_row(tmp_path, error_of, row, reason):
    file = tmp_path / "small.yaml"
    file.write_text(GOOD + f"  b: {row}")
    error = error_of(leaderboard.main, [f"--board={file}", f"--output_dir={tmp_path / 'out'}"])
    assert reason in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "expected --board=FILE"),
        (["--board=nowhere"], "configs/boards/nowhere.yaml: No such file"),
        (["--board={file}", "--rows=a"], "no row a: there are softmax"),
        (["--board={file}", "--rows=softmax;"], "no row : there are softmax"),
        (["--board={file}", "--budget=0"], "expected smoke, full or a factor"),
        (["--board={file}", "--budget=nan"], "expected smoke, full or a factor"),
        (["--board={file}", "--flag=lr"], "expected NAME=VALUE"),
        (["--board={file}", "--flag=no_flag=1"], "row softmax: "),
        (["--board={file}", "--search=random"], "--search"),
        (["--board={file}", "--trials=0"], "--trials"),
        (["--board={file}", "--jobs=-1"], "--jobs"),
        (["--board={file}", "--launcher=ssh"], "--launcher"),
        (["--board={file}", "--output_dir={file}"], "expected a folder to write, found a file"),
        (["--board={file}", "--output_dir={folder}"], "which is not of the results of a board"),
    ],
)
def test_bad_flags_are_named(tmp_path, error_of, flags, reason):
    file = tmp_path / "small.yaml"
    file.write_text(GOOD)
    words = [word.format(file=file, folder=tmp_path) for word in flags]
    assert reason in error_of(leaderboard.main, words)


def test_a_row_has_the_flags_and_the_search_of_its_board(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(GOOD + "search: {lr: [log, 0.1, 1]}\nimages: {train: 12, test: 4}")
    board = read_board(str(file))
    assert board.name == board.title == "small" and board.num_images == {"train": 12, "test": 4}
    [row] = board.rows
    assert row.flags["model"] == "test_resnet" and row.flags["total_iter_num"] == "6"
    assert [str(parameter) for parameter in row.space] == ["lr: 0.1 to 1 (log)"]
    assert row.script == "train_elem.py" and row.slug == "softmax"


def test_a_row_may_have_its_flags_from_a_file(tmp_path):
    """Those of the row win over its file, and those over the board's; where a run is, is left."""
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "small.yaml"
    recipe.write_text("dataset: sop\nrun_name: mine\nloss_name: softmax\nlr: 0.3\nmomentum: 0.5\n")
    row = f"  b: {{config: {recipe}, flags: {{momentum: none, total_iter_num: 4}}}}\n"
    file.write_text(GOOD + row)
    flags = read_board(str(file)).row("b").flags
    assert flags.items() >= {"loss_name": "softmax", "lr": "0.3", "total_iter_num": "4"}.items()
    assert flags["model"] == "test_resnet"
    assert not {"momentum", "dataset", "run_name"} & set(flags)


def test_changes_of_the_command_line():
    rows = {"softmax": SOFTMAX, "softmax, eml": EML, "other": SOFTMAX}
    changes = Changes(
        data={"dataset": "sop"}, flags={"lr": "1"}, protocol={"seeds": 5}, rows=["softmax, eml"]
    )
    board = board_of(rows, data={"dataset": "demo", "data_dir": "x"}, changes=changes)
    assert board.data == {"dataset": "sop"}
    names = [row.name for row in board.rows if row.length_of is None]
    assert names == ["softmax", "softmax, eml"]  # what it starts from is needed
    assert all(row.flags["lr"] == "1" for row in board.rows)
    assert (board.protocol.seeds, board.protocol.folds) == (5, 3)
    kept = board_of(rows, data={"dataset": "demo"}, changes=Changes(data={"data_dir": "y"}))
    assert kept.data == {"dataset": "demo", "data_dir": "y"}


def test_a_baseline_that_is_not_wanted_is_left_out():
    rows = {"a": SOFTMAX, "b": SOFTMAX}
    parts = {"protocol": PROTOCOL | {"baseline": "a"}}
    assert board_of(rows, **parts).protocol.baseline == "a"
    assert board_of(rows, **parts, changes=Changes(rows=["b"])).protocol.baseline is None


def test_two_stages_stand_beside_the_first_one_for_as_many_images():
    rows = {"softmax": SOFTMAX, "softmax, eml": EML, "again": EML}
    board = board_of(rows)
    [long] = [row for row in board.rows if row.length_of is not None]
    assert long.length_of == "softmax, eml" and long.name == "softmax, for 10 steps"
    assert long.flags["total_iter_num"] == "10" and long.flags["loss_name"] == "softmax"
    places = [row.name for row in board.rows]
    assert places.index("softmax") < places.index("softmax, eml")


def test_a_frozen_row_is_not_trained():
    row = board_of({"untrained": {"frozen": "true"}}).rows[0]
    assert row.is_frozen and not row.space
    assert row.flags["total_iter_num"] == "0" and row.flags["loss_name"] == "softmax"


def test_smoke_is_short_and_has_its_own_flags():
    flags = FLAGS | {"pretrained_model": "x"}
    board = build_board(
        "small",
        {
            "flags": flags,
            "search": SEARCH,
            "smoke": {"pretrained_model": "none", "image_shape": "3,16,16"},
            "rows": {"softmax": SOFTMAX, "untrained": {"frozen": "true"}},
        },
        Changes(budget=None, protocol={"trials": 3}),
    )
    softmax, untrained = board.rows
    assert softmax.flags["total_iter_num"] == "2" and untrained.flags["total_iter_num"] == "0"
    assert "pretrained_model" not in softmax.flags and softmax.flags["image_shape"] == "3,16,16"
    assert (board.protocol.folds, board.protocol.trials, board.protocol.seeds) == (4, 3, 2)


def test_names_of_any_kind_have_folders():
    names = ["../../x", "a/b", "**bold** <b>|</b>", "über", "x" * 300, "…"]
    board = board_of(dict.fromkeys(names, SOFTMAX))
    for row in board.rows:
        assert "/" not in row.slug and not row.slug.startswith(".")
        assert 0 < len(row.slug.encode()) < 255
    assert len({row.slug for row in board.rows}) == len(names)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"loss_name": "softmax"}, ["lr", "lr_loss_mult"]),
        ({"loss_name": "arcmargin"}, ["lr", "lr_loss_mult", "arc_scale"]),
        ({"loss_name": "triplet"}, ["lr", "margin"]),
        ({"loss_name": "supcon"}, ["lr", "temperature"]),
        ({"loss_name": "eml", "normalize_embeddings": "true"}, ["lr", "embedding_scale"]),
    ],
)
def test_what_a_row_searches_where_it_does_not_say(flags, names):
    space = default_space(flags | {"lr": "0.02"})
    assert [parameter.name for parameter in space] == names
    assert (space[0].low, space[0].high) == (0.02 / 8, 0.02 * 8)
    assert all(parameter.low < parameter.high for parameter in space)


def test_lengths_stretch_with_their_schedule():
    first = {"total_iter_num": "100", "lr_steps": "50,80", "train_batch_size": "30"}
    second = {"total_iter_num": "100", "train_batch_size": "20"}
    found = longer(first | {"warmup_iter_num": "10"}, second)
    assert found["total_iter_num"] == "167"  # 100 steps of 20 are 66.7 of 30
    assert found["lr_steps"] == "84,134" and found["warmup_iter_num"] == "17"
    assert longer({"num_epochs": "4"}, {"num_epochs": "2"}) == {"num_epochs": "6"}

    assert scaled({"num_epochs": "10", "lr_steps": "4"}, 0.5) == {
        "num_epochs": "5",
        "lr_steps": "2",
    }
    assert scaled({"total_iter_num": "3"}, 0.01) == {"total_iter_num": "1"}
    assert scaled({"total_iter_num": "0"}, 2.0) == {"total_iter_num": "0"}
    assert stretched({"lr_steps": "1", "warmup_iter_num": "1", "warm_head_steps": "20"}, 0.1) == {
        "lr_steps": "1",
        "warmup_iter_num": "0",
        "warm_head_steps": "2",
    }
    assert shortest({"num_epochs": "9", "lr_steps": "5", "warm_head_steps": "3", "lr": "1"}) == {
        "lr": "1",
        "total_iter_num": "2",
    }


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"total_iter_num": "4"}, {"num_epochs": "1"}, "of both stages"),
        ({"total_iter_num": "4"}, {"total_iter_num": "1"}, "train_batch_size of both"),
        ({"num_epochs": "0"}, {"num_epochs": "1"}, "num_epochs: expected a first stage"),
        ({"num_epochs": "x"}, {"num_epochs": "1"}, "num_epochs: expected a whole number, found x"),
        (
            {"num_epochs": "2", "lr_steps": "1,b"},
            {"num_epochs": "1"},
            "lr_steps: expected a whole number, found b",
        ),
    ],
)
def test_lengths_that_cannot_be_added(first, second, reason):
    with pytest.raises(ValueError, match=reason):
        longer(first, second)


def test_a_row_may_not_be_named_as_one_that_is_added():
    other = {"flags": {"loss_name": "cosface", "total_iter_num": "6", "lr": "0.01"}}
    rows = {"softmax": SOFTMAX, "softmax, eml": EML, "softmax, for 10 steps": other}
    with pytest.raises(ValueError, match="row softmax, for 10 steps: the first stage for as long"):
        board_of(rows)
