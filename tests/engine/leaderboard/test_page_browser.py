"""The page of a board in a real browser: its script, its requests, its width; needs Chromium."""

from pathlib import Path

import pytest
from board_table import LONG, ODD, make_row, make_table, usual_rows, write_run
from browser import needs_chromium

from metric_learning.engine.leaderboard.pages.page import FILE, write_page

pytestmark = needs_chromium

NAMES = """[...document.querySelectorAll("#board tbody .opener")]
    .map((opener) => opener.textContent)"""
SORTED = """[...document.querySelectorAll("#board thead th")]
    .map((header) => header.getAttribute("aria-sort"))"""
SHOWN = """[...document.querySelectorAll("#board .about")]
    .filter((about) => about.offsetHeight).map((about) => about.id)"""
DRAWN = "document.querySelectorAll('#chart [data-row]').length"
STATUS = "document.getElementById('curves-status').textContent"
IN_ORDER = ["softmax, eml", "softmax, for 60 steps", "softmax", "untrained", "broken", "later"]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The page of a board of rows of all states, and of two with odd names."""
    folder = tmp_path_factory.mktemp("board")
    rows = [*usual_rows(), make_row(ODD, 0.7), make_row(LONG, 0.65)]
    for row in rows:
        for run in row["runs"]:
            write_run(folder / run, recall=row["start"] is not None)
    write_page(make_table(rows, is_finished=False), folder)
    return folder / FILE


def header(number: int) -> str:
    return f"document.querySelectorAll('#board th button:not(.opener)')[{number}]"


def test_the_page_logs_no_error_and_asks_for_nothing(browser, file):
    browser.open(file)
    browser.run("document.getElementById('open-all').click()")
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    assert browser.errors() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {file.as_uri()}


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_scroll_sideways(browser, file, width, scheme):
    browser.open(file, width, scheme)
    browser.run("document.getElementById('open-all').click()")
    root = "document.documentElement"
    assert browser.run(f"{root}.scrollWidth") <= browser.run(f"{root}.clientWidth")
    outside = """[...document.querySelectorAll(".block, .block *, h1, p, #chart svg, .legend *")]
        .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert browser.run(outside) == 0
    table = "document.querySelector('.scroll')"
    if width != 768:  # where the table fits, and where it is a list of cards
        assert browser.run(f"{table}.scrollWidth - {table}.clientWidth") <= 0


def test_grids_take_their_colours_from_the_page(browser, file):
    strokes = []
    for scheme in ("light", "dark"):
        browser.open(file, scheme=scheme)
        strokes.append(browser.run("getComputedStyle(document.querySelector('.tick')).stroke"))
    assert strokes == ["rgb(214, 220, 226)", "rgb(57, 66, 75)"]


def test_headers_sort_whole_rows_and_the_board_s_order_comes_back(browser, file):
    browser.open(file)
    assert browser.run(NAMES)[:6] == IN_ORDER and browser.run(SORTED) == [None] * 9
    assert browser.run("document.getElementById('reset').disabled")
    browser.run(f"{header(1)}.click()")
    assert browser.run(SORTED)[1] == "descending"
    by_recall = browser.run(NAMES)
    assert by_recall[:3] == IN_ORDER[:3] and by_recall[-2:] == ["broken", "later"]
    browser.run(f"{header(1)}.click()")
    assert browser.run(SORTED)[1] == "ascending"
    assert browser.run(NAMES) == [*by_recall[-3::-1], "broken", "later"]  # these stay last
    about = """[...document.querySelectorAll("#board tbody")]
        .every((body) => body.id.slice(4) === body.rows[1].id.slice(6))"""
    assert browser.run(about)
    browser.run("document.getElementById('reset').click()")
    assert browser.run(NAMES)[:6] == IN_ORDER and browser.run(SORTED) == [None] * 9


def test_the_keyboard_sorts_and_opens(browser, file):
    browser.open(file)
    assert browser.run(SHOWN) == []
    browser.run(f"{header(6)}.focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(SORTED)[6] == "ascending"
    browser.run("document.querySelector('#row-0 .opener').focus()")
    browser.press(" ", 32, " ")
    assert browser.run(SHOWN) == ["about-0"]
    expanded = "document.querySelector('#row-0 .opener').getAttribute('aria-expanded')"
    assert browser.run(expanded) == "true"
    browser.press("Enter", 13, "\r")
    assert browser.run(SHOWN) == [] and browser.run(expanded) == "false"


def test_checkboxes_choose_the_curves(browser, file):
    browser.open(file)
    assert browser.run(DRAWN) == 6 and browser.run(STATUS) == "6 of 6 rows drawn"
    browser.run("document.querySelectorAll('.legend input')[1].click()")
    assert browser.run(DRAWN) == 5
    choose = """(() => {
        const measure = document.getElementById("measure");
        measure.value = "recall";
        measure.dispatchEvent(new Event("change"));
    })()"""
    browser.run(choose)
    assert browser.run(DRAWN) == 1
    assert browser.run(STATUS) == "1 of 6 rows drawn; 4 without such a curve"
    browser.run("document.getElementById('none').click()")
    assert browser.run(DRAWN) == 0 and browser.errors() == []
    assert "NaN" not in browser.run("document.getElementById('chart').innerHTML")


def test_a_command_can_be_copied(browser, file):
    browser.open(file)
    browser.run("document.querySelector('#row-0 .opener').click()")
    browser.run("document.querySelector('#row-0 .copy').click()")
    label = "document.querySelector('#row-0 .copy').textContent"
    for _ in range(100):
        if (said := browser.run(label)) != "Copy the command":
            break
    assert said in ("Copied", "Selected") and browser.errors() == []


def test_without_its_script_all_is_shown(browser, file):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        assert len(browser.run(SHOWN)) == 8 and browser.run(NAMES)[:6] == IN_ORDER
        assert browser.run("document.querySelector('.controls').offsetHeight") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
