"""The table of a board, and how its files write it."""

import csv
import json

import numpy as np
import pytest
from small_boards import EML, PROTOCOL, SOFTMAX, board_of, finish, finish_all

from metric_learning.engine.leaderboard.live import Live
from metric_learning.engine.leaderboard.tables.formats import (
    COLUMNS,
    cells_of,
    contrast_text,
    header,
    in_tex,
    latex,
    markdown,
    write_tables,
)
from metric_learning.engine.leaderboard.tables.results import OF_THE_MACHINE, results_of
from metric_learning.engine.leaderboard.trainings.plan import Plan

ODD = "a|b <i>_#1 50% \\x {y} $z ^ ~ & [k]"
ROWS = {
    "untrained": {"frozen": "true"},
    "softmax": SOFTMAX | {"published": {"recall@1": "79.3", "source": "a paper"}},
    "softmax, eml": EML,
    ODD: SOFTMAX,
}
VALUES = {"untrained": 0.1, "softmax": 0.6, "softmax, eml": 0.95, ODD: 0.5}


def value_of(task):
    return VALUES.get(task.row, 0.7)


@pytest.fixture
def plan(tmp_path):
    protocol = PROTOCOL | {"baseline": "softmax"}
    return Plan(board_of(ROWS, title="T  one\n two", protocol=protocol), tmp_path / "out")


@pytest.fixture
def found(plan):
    finish_all(plan, value_of)
    return results_of(plan)


def row_of(found, name):
    return next(row for row in found["rows"] if row["name"] == name)


def test_a_board_before_its_first_training(plan, tmp_path):
    found = results_of(plan)
    assert found["done"] == 0 and not found["is_finished"] and found["best"] == {}
    assert [row["name"] for row in found["rows"]][:2] == ["untrained", "softmax"]
    assert markdown(found).count("not done yet") == len(found["rows"])
    write_tables(found, tmp_path)
    assert {path.name for path in tmp_path.glob("board.*")} == {
        *("board.json", "board.csv", "board.md", "board.tex")
    }


def test_rows_stand_in_the_order_of_recall(found):
    names = [row["name"] for row in found["rows"]]
    assert names == ["softmax, eml", "softmax, for 10 steps", "softmax", ODD, "untrained"]
    assert found["is_finished"] and found["best"]["recall@1"] == "softmax, eml"


def test_what_a_row_holds(found):
    row = row_of(found, "softmax")
    assert len(row["trials"]) == 6 and len(row["commands"]) == len(row["runs"]) == 2
    assert row["validation"] == pytest.approx(0.3) and row["settings"].keys() == {"lr"}
    assert row["minutes"] == 6 * 3 + 2 and row["images"] == 96 and row["hosts"] == ["here"]
    assert len(row["figures"]["recall@1"]["by_seed"]) == 2
    assert "to_baseline" not in row and row["to_best"]["recall@1"]["difference"] < 0
    frozen = row_of(found, "untrained")
    assert frozen["trials"] == [] and frozen["figures"]["map@r"]["deviation"] is None
    assert set(OF_THE_MACHINE) <= row.keys()


def test_comparisons_are_corrected_for_the_number_of_rows(found):
    rows = [row["to_best"]["recall@1"] for row in found["rows"] if "to_best" in row]
    assert len(rows) == 4
    least = min(rows, key=lambda contrast: contrast["p"])
    assert least["p_holm"] == pytest.approx(min(1.0, 4 * least["p"]))
    assert all(row["p"] <= row["p_holm"] for row in rows)
    assert all(row["is_significant"] == (row["p_holm"] <= 0.05) for row in rows)


def test_the_markdown_has_a_cell_for_each_column(found):
    lines = markdown(found).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert lines[0] == "# T one two" and len(table) == 2 + len(found["rows"])
    for line in table:
        assert line.replace(r"\|", "").count("|") == len(header(found)) + 1
    assert any(r"a\|b" in line for line in table)
    assert "| beside it: softmax, for 10 steps |" in table[3]
    assert "Published figures: a paper." in lines


def test_the_latex_escapes_what_would_be_a_command(found):
    text = latex(found)
    rows = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(rows) == len(found["rows"])
    for line in rows:
        assert line.endswith(r" \\") and line.replace(r"\&", "").count("&") == 9
    assert r"a|b <i>\_\#1 50\% /x \{y\} \$z \^{} \textasciitilde{} \& [k]" in text
    assert in_tex("1.0 ± 0.5 –") == r"1.0 $\pm$ 0.5 --"


def test_no_row_begins_with_an_option_of_the_line_before(tmp_path):
    plan = Plan(board_of({"[a]": SOFTMAX, "*b": SOFTMAX}), tmp_path)
    lines = latex(results_of(plan)).splitlines()
    assert any(line.startswith("{}[a] &") for line in lines)
    assert any(line.startswith("{}*b &") for line in lines)


def test_the_csv_reads_back(found, tmp_path):
    write_tables(found, tmp_path)
    with (tmp_path / "board.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in found["rows"]]
    assert tuple(rows[0]) == COLUMNS
    by_name = {row["name"]: row for row in rows}
    softmax = row_of(found, "softmax")
    assert float(by_name["softmax"]["recall@1"]) == softmax["figures"]["recall@1"]["mean"]
    assert by_name["softmax"]["published"] == "79.3" and by_name["softmax"]["seeds"] == "2"
    assert by_name["softmax"]["settings"] == f"--lr={softmax['settings']['lr']}"
    assert by_name["softmax"]["to_baseline"] == "" != by_name["untrained"]["to_baseline"]
    assert json.loads((tmp_path / "board.json").read_text())["rows"] == found["rows"]


def test_a_clear_best_is_bold_and_a_significant_difference_has_a_star(found):
    clear = row_of(found, "softmax, eml")
    for row in found["rows"]:
        for kind in ("to_best", "to_baseline"):
            for contrast in row.get(kind, {}).values():
                contrast["is_significant"] = True
    text = cells_of(clear, found)[1]
    assert f"**{text}**" in markdown(found) and rf"\textbf{{{in_tex(text)}}}" in latex(found)
    row_of(found, "untrained")["to_best"]["recall@1"]["is_significant"] = False
    assert f"**{text}**" not in markdown(found)
    contrast = {"difference": 0.01234, "low": None, "high": None, "is_significant": True}
    assert contrast_text(contrast) == "+1.2*" and contrast_text(None) == ""


@pytest.mark.parametrize(
    ("failing", "row", "reason"),
    [
        ("softmax", "softmax", "no memory"),
        ("softmax", "softmax, eml", "softmax has failed"),
        ("softmax, eml", "softmax, eml", "no memory"),
    ],
)
@pytest.mark.parametrize("in_trials", [True, False])
def test_a_failed_row_is_a_line(plan, failing, row, reason, in_trials):
    def value(task):
        fails = task.row == failing and (task.fold is not None) == in_trials
        return "no memory" if fails else value_of(task)

    finish_all(plan, value)
    found = results_of(plan)
    assert found["is_finished"]
    failed = row_of(found, row)
    assert failed["failure"] == reason and "figures" not in failed
    assert f"| {row} | {reason} |" in markdown(found)
    assert "figures" in row_of(found, ODD) and "to_best" in row_of(found, ODD)


def test_one_failed_seed_of_two_leaves_no_figure(plan):
    finish_all(plan, lambda task: "no memory" if task.fold is None and task.number else 0.5)
    found = results_of(plan)
    assert row_of(found, "softmax")["failure"] == "no memory"
    assert row_of(found, "softmax, eml")["failure"] == "softmax has failed"
    assert "figures" in row_of(found, "untrained")


def test_a_row_that_is_widened_says_so(plan):
    def rising(task):
        rate = float(task.flags["lr"]) if task.row != "untrained" else 0.001
        return 0.5 + np.log10(rate) / 10

    finish_all(plan, rising)
    found = results_of(plan)
    row = row_of(found, "softmax")
    assert row["widened"] == ["lr above 0.1"] and row["at_edge"] == ["lr"]
    assert float(row["settings"]["lr"]) > 0.1
    assert "softmax: widened: lr above 0.1; the best lr is still the most" in markdown(found)


def test_damaged_scores_are_named(plan):
    finish_all(plan, value_of)
    folder = plan.output / plan.finals(plan.board.row("softmax"))[0].folder
    (folder / "test_scores.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"test_scores\.npz is damaged: train the run again"):
        results_of(plan)


def test_a_closed_set_has_intervals_over_images(tmp_path):
    widths = []
    for closed in ("false", "true"):
        protocol = PROTOCOL | {"closed": closed}
        plan = Plan(board_of({"softmax": SOFTMAX}, protocol=protocol, search={}), tmp_path / closed)
        finish_all(plan)
        found = results_of(plan)
        figure = found["rows"][0]["figures"]["recall@1"]
        widths.append(figure["high"] - figure["low"])
        assert ("test images" in markdown(found)) == (closed == "true")
    assert widths[0] != widths[1]


def test_a_line_for_each_training_that_ends(plan, capsys):
    live = Live(plan)
    first, second = plan.open_tasks()[:2]
    finish(plan, first, 0.5)
    finish(plan, second, failure="no memory")
    plan.refresh()
    live.update()
    live.update()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "untrained, seed 0: map@r 25.0, recall@1 50.0, 1.0 min; 2 of about 81 tr" in lines[0]
    assert "softmax, trial 0, fold 0: failed: no memory" in lines[1]


def test_a_terminal_has_a_line_for_each_row(plan, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    live = Live(plan)
    live.update()
    finish_all(plan, value_of)
    live.update()
    live.close()
    screens = capsys.readouterr().out.split("\x1b[J")
    assert len(screens) == 2
    assert [screen.count("\n") for screen in screens] == [6, 6]
    assert "trials   6" in screens[1] and "seeds 2" in screens[1]
