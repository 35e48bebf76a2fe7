"""The page of a board, and the reports that it links to."""

import json
import os
import re
from urllib.parse import unquote

import numpy as np
import pytest
from board_table import LONG, ODD, make_row, make_table, trial, usual_rows, write_run
from report_subject import Page

from metric_learning.common.names import printable
from metric_learning.engine.leaderboard.pages import page, reports
from metric_learning.engine.leaderboard.pages.cells import linked
from metric_learning.engine.leaderboard.pages.curves import MOST_POINTS, curves_of, thinned
from metric_learning.engine.leaderboard.pages.drawings import Axis, Dot, draw_trials, interval_axis
from metric_learning.engine.leaderboard.pages.page import render, write_page


def of_kind(found: Page, tag: str, kind: str) -> list[dict]:
    """Attributes of the elements with a tag and a class."""
    return [a for name, a in found.elements if name == tag and kind in a.get("class", "").split()]


def body_of(html: str, number: int) -> str:
    """The HTML of a row with all that belongs to it."""
    return re.search(rf'<tbody id="row-{number}".*?</tbody>', html, re.DOTALL)[0]


@pytest.fixture
def folder(tmp_path):
    for row in usual_rows():
        for run in row["runs"]:
            write_run(tmp_path / run, recall=row["start"] is not None)
    return tmp_path


def test_the_page_shows_rows_of_all_states(folder):
    html = render(make_table(usual_rows()), folder)
    found = Page(html)
    states = [a["class"].split()[0] for tag, a in found.elements if tag == "tbody"]
    assert states == ["done", "done", "done", "done", "failed", "open"]
    assert "80.0 ± 0.4" in body_of(html, 0) and "(78.0\xa0to\xa082.0)" in body_of(html, 0)
    assert "+7.0* (5.0 to 9.0)" in body_of(html, 0) and "is the best" in body_of(html, 0)
    assert "is the baseline" in body_of(html, 2) and "lr above 0.1" in body_of(html, 2)
    assert "failed: ValueError: &lt;i&gt;no&lt;/i&gt; such loss" in body_of(html, 4)
    assert "not done yet: 3 of 4 trials" in body_of(html, 5)
    assert "In progress" not in html and "<progress" not in html
    assert "chance: Recall@1 of random embeddings, 1.75 %" in html
    for line in ("Settings: 4 trials a row", "significant at 5 %", "widened: lr above 0.1"):
        assert line in found.text


def test_a_first_stage_for_as_long_is_tied_to_its_two_stages(folder):
    html = render(make_table(usual_rows()), folder)
    assert len(of_kind(Page(html), "tbody", "beside")) == 1
    assert "for as many images as <b>softmax, eml</b>" in body_of(html, 1)


@pytest.mark.parametrize(
    "rows", [[], [make_row("softmax")], [make_row("a", start="softmax", trials=[])]]
)
def test_a_board_that_has_just_begun_has_a_page(rows, tmp_path):
    html = render(make_table(rows, is_finished=False), tmp_path)
    assert "20 of about 40 trainings are done" in html and 'max="40"' in html
    assert "no training has written a line" in html
    assert html.count("<tbody") == len(rows)
    assert ("waits for softmax" in html) == any(row["start"] for row in rows)


def test_a_row_whose_seeds_are_open_says_how_many(tmp_path):
    row = make_row("softmax", 0.5)
    del row["figures"]
    write_run(tmp_path / row["runs"][1])
    html = render(make_table([row]), tmp_path)
    assert "not done yet: 3 of 4 trials, 1 of 2 seeds" in html


def test_only_a_clear_best_is_bold(folder):
    rows = usual_rows()
    assert "<strong>80.0 ± 0.4</strong>" in render(make_table(rows), folder)
    rows[1]["figures"] = make_row("", 0.79)["figures"]
    assert "<strong>80.0" not in render(make_table(rows), folder)


@pytest.mark.parametrize("name", [ODD, LONG, "a\nb", "\u202eevil", "\ud800"])
def test_texts_of_users_stay_text(name, tmp_path):
    rows = usual_rows()[2:] + [
        make_row(name, 0.6, failure=name, hosts=[name], published={"source": name})
    ]
    rows[-1]["trials"].append(trial(3, None, name))
    rows[-1]["settings"]["margin"] = name
    write_run(tmp_path / rows[-1]["runs"][0])
    write_page(make_table(rows, title=name), tmp_path)
    html = (tmp_path / page.FILE).read_text("utf-8")
    found = Page(html)
    usual = Page(render(make_table(usual_rows()[2:]), tmp_path))
    for tag in ("script", "i", "style", "h1"):
        count = [t for t, _ in found.elements].count(tag)
        assert count == [t for t, _ in usual.elements].count(tag)
    assert found.headings[0] == printable(name).encode("utf-8", "backslashreplace").decode()
    data = re.search(r'id="curves-data">(.*?)</script>', html)[1]
    assert "<" not in data and len(json.loads(data)) == 1
    assert "\u202e" not in html


def test_the_page_needs_nothing_else(folder):
    html = render(make_table(usual_rows()), folder)
    found = Page(html)
    for tag, attributes in found.elements:
        assert "src" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"
        if tag == "use":
            assert attributes["href"].startswith(("#grid-", "#scale-"))
    assert "@import" not in html and "url(" not in html and "default-src 'none'" in html
    outside = [a["href"] for t, a in found.elements if t == "a" and "://" in a["href"]]
    assert set(outside) == {"https://example.org/a?b=1&c=2"}


def test_ids_are_unique_and_lead_somewhere(folder):
    rows = [make_row(f"{number} {LONG}", 0.5 + number / 300) for number in range(100)]
    found = Page(render(make_table(rows), folder))
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids)) and len(ids) > 200
    assert {a["aria-controls"] for _, a in found.elements if "aria-controls" in a} <= set(ids)
    assert {a["href"][1:] for tag, a in found.elements if tag == "use"} <= set(ids)


def test_the_keys_of_the_sorting_are_numbers_or_empty(folder):
    found = Page(render(make_table(usual_rows()), folder))
    columns = [a for tag, a in found.elements if tag == "th" and a["scope"] == "col"]
    assert len(columns) == 9
    cells = [a["data-sort"] for a in of_kind(found, "td", "number")]
    rows = np.array(cells).reshape(6, 8)
    assert [float(key) for key in rows[:4, 0]] == [0.8, 0.74, 0.73, 0.4]
    assert rows[4:, :4].tolist() == [[""] * 4] * 2
    assert rows[0, 3] == "0.0" and rows[2, 2] == "0.0"  # the best, and the baseline
    assert rows[:, 7].tolist() == ["79.3", *[""] * 5]


def test_links_are_relative_and_of_files_that_are_there(folder):
    row = usual_rows()[0]
    made = folder / row["runs"][0] / "report"
    made.mkdir()
    (made / "index.html").write_text("a report")
    rows = [row, make_row("r\u00e9f + 50%#", 0.5)]
    write_run(folder / rows[1]["runs"][0])
    found = Page(render(make_table(rows), folder))
    hrefs = [a["href"] for tag, a in found.elements if tag == "a" and "://" not in a["href"]]
    assert sum("report" in href for href in hrefs) == 1 and len(hrefs) == 4
    for href in hrefs:
        assert not href.startswith("/") and href.isascii()
        assert (folder / unquote(href)).is_file()


def test_addresses_in_texts_become_links():
    html = linked('see "https://a.org/x?y=1&z=<2>", or http://b.org/.')
    assert html.count("<a ") == 2 and '"https://a.org/x?y=1&amp;z="' in html
    assert 'href="http://b.org/"' in html and html.endswith(".")
    assert linked("javascript:alert(1)") == "javascript:alert(1)"


def test_an_opened_row_tells_what_it_rests_on(folder):
    rows = usual_rows()
    rows[0]["trials"][2]["failure"] = "the loss is not finite"
    html = body_of(render(make_table(rows), folder), 0)
    for text in ("--lr=0.004", "25.00 %", "lr: 0.001 to 0.1 (log)", "79.70, 80.30", "p 0.02"):
        assert text in html
    assert "trial 2, <code>--lr=0.016 --margin=a</code>: the loss is not finite" in html
    assert html.count("<pre") == 2 and "python train_elem.py --seed=1" in html
    assert html.count('class="plot"') == 2 and html.count('class="ring"') == 2
    assert html.count('class="failed"') == 2


def test_a_damaged_run_costs_its_curve_alone(folder):
    rows = usual_rows()
    whole = render(make_table(rows), folder)
    assert whole.count('type="checkbox"') == 4
    (folder / rows[0]["runs"][0] / "stats.jsonl").write_text("{\n{}\n")
    (folder / rows[1]["runs"][0] / "args.json").write_text("[]")
    (folder / rows[2]["runs"][0] / "result.json").write_text("[]")
    # The flags of a run do not change: what was read of them stays as long as its records do.
    os.utime(folder / rows[1]["runs"][0] / "stats.jsonl", (0, 0))
    assert render(make_table(rows), folder).count('type="checkbox"') == 2


def test_curves_are_over_images_relative_to_their_start_and_thin(tmp_path):
    write_run(tmp_path / "run", 1000, recall=True)
    curves = curves_of(tmp_path / "run")
    assert set(curves) == {"loss", "relative", "recall"}
    assert all(len(curve) == MOST_POINTS for curve in curves.values())
    assert curves["loss"][0][0] == 400 and curves["loss"][-1][0] == 400_000
    assert curves["relative"][-1][1] == pytest.approx(1 / 1000, rel=0.01)
    write_run(tmp_path / "short", 3)
    assert [y for _, y in curves_of(tmp_path / "short")["relative"]] == [1.0, 0.5, 0.3333]
    assert curves_of(tmp_path / "none") == {}


def test_thinning_takes_means():
    places, values = np.arange(1.0, 1001), np.tile([1.0, 3.0], 500)
    thin = thinned(places, values)
    assert len(thin) == MOST_POINTS and thin[0][0] == 1 and thin[-1][0] == 1000
    assert abs(np.mean([y for _, y in thin]) - 2.0) < 1e-9
    assert max(abs(y - 2.0) for _, y in thin) <= 0.2 + 1e-9  # of five values each
    assert thinned(places[:1], values[:1]) == [[1.0, 1.0]]


def test_an_axis_keeps_its_values_inside():
    axis = interval_axis([0.7, 0.9])
    assert axis.start < axis.at(0.7) < axis.at(0.8) < axis.at(0.9) < axis.end
    assert axis.at(0.8) == pytest.approx((axis.start + axis.end) / 2, abs=0.1)
    assert [text for _, text in axis.ticks] == ["70", "75", "80", "85", "90"]
    assert interval_axis([]).ticks and interval_axis([0.5]).ticks

    log = Axis.around([1e-4, 1.0], start=0, end=100, is_log=True)
    assert log.at(1e-2) == pytest.approx(50, abs=0.1)
    assert {"0.001", "0.01", "0.1"} <= {text for _, text in log.ticks}


def test_trials_of_one_value_or_of_none_that_lived_are_drawn():
    alone = draw_trials("lr", [Dot("0", 0.5, (0.5, 0.5), True, "t")], is_log=True)
    assert 'class="ring"' in alone and "nan" not in alone
    failed = draw_trials("lr", [Dot("0.1", None, (0.0, 0.0), False, "<t>")], is_log=True)
    assert 'class="failed"' in failed and "&lt;t&gt;" in failed and "nan" not in failed
    named = draw_trials("p", [Dot(t, 0.5, (0.4, 0.6), False, t) for t in ("b", "a" * 30)], False)
    assert f">{'a' * 8}…<" in named and ">b<" in named


def test_a_page_that_fails_ends_nothing(tmp_path, monkeypatch, capsys):
    def fail(found, folder):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(page, "render", fail)
    write_page(make_table([]), tmp_path)
    assert "board.html was not written: ZeroDivisionError: by nothing" in capsys.readouterr().out


def test_reports_are_written_once_and_again_after_a_new_outcome(folder, monkeypatch, capsys):
    rows = usual_rows()
    asked = []

    def write(words):
        asked.append(words)
        if "eml" in words[0]:
            raise SystemExit(2)
        if "untrained" in words[0]:
            raise RuntimeError("no memory")
        (folder / rows[2]["runs"][0] / "report").mkdir(exist_ok=True)
        (folder / words[0] / "report").mkdir(exist_ok=True)
        (folder / words[0] / "report" / "index.html").write_text("a report")

    monkeypatch.setattr(reports, "report", write)
    found = make_table(rows)
    reports.write_reports(found, folder, ["--device=cuda:1"])
    assert [words[1:] for words in asked] == [["--dataset=demo", "--device=cuda:1"]] * 4
    said = capsys.readouterr().out
    assert "softmax, eml: no report\n" in said and "no report: RuntimeError: no memory" in said

    reports.write_reports(found, folder)
    assert len(asked) == 4 + 2  # those that had failed
    os.utime(folder / rows[2]["runs"][0] / "result.json", (2e9, 2e9))
    reports.write_reports(found, folder)
    assert len(asked) == 6 + 3
