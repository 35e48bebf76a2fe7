"""The report in a real browser: its script, its requests, its width; needs Chromium."""

from pathlib import Path

import numpy as np
import pytest
from browser import needs_chromium

from metric_learning.engine.report.data import Subject
from metric_learning.engine.report.page import render

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A report on 12 classes with long names, one of them on its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 12
    embeddings = rng.normal(size=(96, 8)) + 1.5 * rng.normal(size=(12, 8))[labels]
    everywhere = np.ones(96, bool)
    subject = Subject(
        title="ResNet50_with_a_long_name with eml on Stanford_Online_Products",
        facts=[("Weights", "a/very/long/path/" * 8 + "best.pt")],
        flags={"pretrained_model": "another/long/path/" * 8},
        records=[{"kind": "train", "step": 1, "loss": 1.0, "recall": 0.5}],
        embeddings=embeddings.astype(np.float32),
        labels=labels,
        class_names={label: f"{label}_" + "Anextraordinarilylongname" * 2 for label in range(12)},
        is_query=everywhere,
        is_gallery=everywhere,
        read_image=lambda row: np.full((30, 40, 3), 20 * labels[row], np.uint8),
        super_classes={label: ("bird", "boat", "car")[label % 3] for label in range(12)},
        paths=[f"a/long/path/to/photo_{number}_of_the_shop.jpg" for number in range(96)],
    )
    file = tmp_path_factory.mktemp("report") / "index.html"
    file.write_text(render(subject), encoding="utf-8")
    return file


COLUMN = """[...document.querySelectorAll("#class-table tbody tr")]
    .filter((row) => !row.hidden).map((row) => row.cells[%d].textContent)"""
SORTED = """[...document.querySelectorAll("#class-table thead th")]
    .map((header) => header.getAttribute("aria-sort"))"""


def test_the_page_logs_no_error_and_asks_for_nothing(browser, file):
    browser.open(file)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    assert browser.errors() == []
    requests = browser.requests()
    assert file.as_uri() in requests
    assert all(url == file.as_uri() or url.startswith("data:") for url in requests)
    broken = "[...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.run("document.images.length") > 100 and browser.run(broken) == 0


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_scroll_sideways(browser, file, width, scheme):
    browser.open(file, width, scheme)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    root = "document.documentElement"
    assert browser.run("window.innerWidth") == width
    assert browser.run(f"{root}.scrollWidth") <= browser.run(f"{root}.clientWidth")
    outside = """[...document.querySelectorAll("main > section > *:not(.scroll)")]
        .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert browser.run(outside) == 0


def test_both_schemes_have_their_colours(browser, file):
    colours = []
    for scheme in ("light", "dark"):
        browser.open(file, scheme=scheme)
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        line = "getComputedStyle(document.querySelector('#recall .chart text')).fill"
        assert browser.run(line) == browser.run("getComputedStyle(document.body).color")
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 28)"]


def test_a_click_on_a_header_sorts_the_table(browser, file):
    browser.open(file)
    assert browser.run(SORTED)[3] == "ascending"
    recalls = [float(text) for text in browser.run(COLUMN % 3)]
    assert len(recalls) == 12 and recalls == sorted(recalls)
    for order in ("ascending", "descending"):
        browser.run("document.querySelectorAll('#class-table th button')[7].click()")
        ranks = [float(text) for text in browser.run(COLUMN % 7)]
        assert ranks == sorted(ranks, reverse=order == "descending") and len(set(ranks)) > 3
        assert browser.run(SORTED) == [None] * 7 + [order] + [None]


def test_the_keyboard_sorts_by_name_in_the_order_of_numbers(browser, file):
    browser.open(file)
    browser.run("document.querySelector('#class-table th button').focus()")
    browser.press("Enter", 13, "\r")
    numbers = [int(name.split("_")[0]) for name in browser.run(COLUMN % 0)]
    assert numbers == list(range(12))
    browser.press(" ", 32, " ")
    assert browser.run(COLUMN % 0)[0].startswith("11_")


def test_the_filter_hides_other_classes(browser, file):
    browser.open(file)
    browser.run("document.getElementById('class-filter').focus()")
    for letter in "BOAT":
        browser.press(letter, ord(letter), letter)
    assert browser.run(COLUMN % 1) == ["boat"] * 4
    status = "document.getElementById('class-status').textContent"
    assert browser.run(status) == "4 of 12 classes shown"


STATUS = "document.getElementById('map-status').textContent"
SHOWN = """[...document.querySelectorAll("#map-drawing [data-class]")]
    .filter((group) => getComputedStyle(group).opacity === "1")
    .map((group) => group.dataset.class)"""
DOT = """(() => {
    const dot = document.querySelector('#map-drawing [data-class="4"] circle');
    dot.scrollIntoView({block: "center", behavior: "instant"});
    const box = dot.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


def test_the_map_shows_where_a_class_lies(browser, file):
    browser.open(file)
    assert set(browser.run(SHOWN)) == {str(number) for number in range(12)}
    browser.run("document.getElementById('map-list').focus()")
    browser.press("ArrowDown", 40)
    assert browser.run(STATUS).startswith("0_") and set(browser.run(SHOWN)) == {"0"}


def test_the_map_shows_the_class_under_the_pointer(browser, file):
    browser.open(file)
    browser.run("document.querySelector('#map-drawing .pictures').remove()")
    x, y = browser.run(DOT)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.run(STATUS).startswith("4_") and set(browser.run(SHOWN)) == {"4"}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert len(set(browser.run(SHOWN))) == 12


DIALOG = "document.getElementById('enlarged')"
CAPTION = f"{DIALOG}.querySelector('figcaption').textContent"


@pytest.mark.parametrize("width", [360, 1400])
def test_a_picture_is_enlarged_and_the_keyboard_leads_on(browser, file, width):
    browser.open(file, width)
    browser.run("document.querySelector('.query .enlarge').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(f"{DIALOG}.open") and browser.run(CAPTION).startswith("Query: ")
    assert "photo_" in browser.run(CAPTION) and "· b" in browser.run(CAPTION)
    browser.press("ArrowRight", 39)
    assert browser.run(CAPTION).startswith("Neighbour 1, ")
    browser.press("ArrowLeft", 37)
    browser.press("ArrowLeft", 37)
    assert browser.run(CAPTION).startswith("Neighbour 6, ")
    box = browser.run(f"(({DIALOG}.querySelector('img')).getBoundingClientRect().width)")
    assert 250 < box < width
    browser.press("Escape", 27)
    assert not browser.run(f"{DIALOG}.open")
    focus = "document.activeElement.closest('.query .enlarge') !== null"
    assert browser.run(focus)  # it goes on where it was
    browser.run("document.querySelectorAll('#confused .enlarge')[1].click()")
    assert browser.run(CAPTION).startswith("Neighbour, wrong: ")
    browser.run(f"{DIALOG}.querySelector('[data-step=\"0\"]').click()")
    assert not browser.run(f"{DIALOG}.open") and browser.errors() == []


def test_queries_are_filtered_by_class_and_file(browser, file):
    browser.open(file)
    shown = "[...document.querySelectorAll('.query')].filter((each) => each.offsetHeight).length"
    before = browser.run(shown)
    browser.run("document.getElementById('query-filter').focus()")
    for letter in "CAR":
        browser.press(letter, ord(letter), letter)
    after = browser.run(shown)
    assert 0 < after < before == 24
    status = "document.getElementById('query-status').textContent"
    assert browser.run(status) == f"{after} of 24 queries shown"


def test_without_its_script_the_table_is_there(browser, file):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        assert len(browser.run(COLUMN % 0)) == 12
        assert browser.run("document.querySelectorAll('#class-table button').length") == 0
        assert browser.run("document.querySelector('.controls').offsetHeight") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
