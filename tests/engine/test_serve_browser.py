"""The search page in a real browser: images, words, keys, widths, colours; needs Chromium."""

import base64

import pytest
from browser import needs_chromium

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import make_index, served  # noqa: E402

pytestmark = needs_chromium

IS_READY = "document.querySelector('#about').textContent.includes('images of')"
IS_ANSWERED = "document.querySelector('#status').textContent.includes('nearest first')"
CLASSES = "[...document.querySelectorAll('#neighbours .class')].map((each) => each.textContent)"


@pytest.fixture(scope="module")
def address(tmp_path_factory, toy_tree):
    file = make_index(tmp_path_factory.mktemp("served"), toy_tree)
    with served(file) as (found, _):
        yield found


@pytest.fixture
def asked(browser, address, toy_tree):
    """Open the page, search for an image, and return the browser."""

    def ask(width=1200, scheme="light"):
        browser.open(f"{address}/", width, scheme)
        browser.wait_for(IS_READY)
        browser.choose_file("#file", toy_tree / "test" / "class_8" / "2.png")
        browser.wait_for(IS_ANSWERED)
        return browser

    return ask


def test_an_image_finds_its_likes(asked, address):
    browser = asked()
    assert browser.run("document.querySelectorAll('#neighbours li').length") == 12
    assert browser.run(CLASSES)[0] == "class_8"
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    complete = "[...document.images].every((each) => each.id || each.naturalWidth > 0)"
    browser.wait_for(complete)
    assert browser.run("document.querySelector('#preview').naturalWidth") == 40
    assert browser.errors() == []
    assert all(url.startswith((address, "blob:", "data:")) for url in browser.requests())


def test_a_class_and_a_number_of_neighbours_are_chosen(asked):
    browser = asked()
    change = "document.querySelector('#%s').dispatchEvent(new Event('change'))"
    browser.run("document.querySelector('#class').value = 'class_6'; " + change % "class")
    browser.wait_for(f"{CLASSES}.length == 4")
    assert browser.run(CLASSES) == ["class_6"] * 4
    browser.run("document.querySelector('#class').value = ''")
    browser.run("document.querySelector('#count').value = '6'; " + change % "count")
    browser.wait_for(f"{CLASSES}.length == 6")


def test_keys_alone_enlarge_a_neighbour_and_go_on(asked):
    browser = asked()
    browser.run("document.querySelector('#count').focus()")
    browser.press("Tab", 9)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert browser.run(focused).startswith("Enlarge neighbour 1: class_8")
    browser.press("Enter", 13, "\r")
    browser.wait_for("document.querySelector('#large').open")
    words = "document.querySelector('#large-words').textContent"
    assert browser.run(words).startswith("1 of 12: class_8")
    browser.press("ArrowRight", 39)
    assert browser.run(words).startswith("2 of 12")
    browser.press("ArrowLeft", 37)
    browser.press("ArrowLeft", 37)
    assert browser.run(words).startswith("12 of 12")
    browser.wait_for("document.querySelector('#large-picture').naturalWidth > 0")
    browser.press("Escape", 27)
    assert not browser.run("document.querySelector('#large').open")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(browser, address, toy_tree, how):
    browser.open(f"{address}/")
    browser.wait_for(IS_READY)
    data = base64.b64encode((toy_tree / "test" / "class_7" / "0.png").read_bytes()).decode()
    browser.run(
        f"""{{
        const bytes = Uint8Array.from(atob("{data}"), (letter) => letter.charCodeAt(0));
        const held = new DataTransfer();
        held.items.add(new File([bytes], "a.png", {{ type: "image/png" }}));
        const event = "{how}" === "drop"
            ? new DragEvent("drop", {{ dataTransfer: held, bubbles: true, cancelable: true }})
            : new ClipboardEvent("paste", {{ clipboardData: held, bubbles: true }});
        document.body.dispatchEvent(event);
        }}"""
    )
    browser.wait_for(IS_ANSWERED)
    assert browser.run(CLASSES)[0] == "class_7"


def test_what_is_no_image_is_said(browser, address, tmp_path):
    browser.open(f"{address}/")
    browser.wait_for(IS_READY)
    (tmp_path / "a.jpg").write_bytes(b"no image at all")
    browser.choose_file("#file", tmp_path / "a.jpg")
    browser.wait_for("document.querySelector('#status').className.includes('error')")
    words = browser.run("document.querySelector('#status').textContent")
    assert words.startswith("No answer: cannot read the upload")
    assert browser.run("document.querySelector('#answer').hidden")


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_has_the_colours_of_its_scheme(asked, width, scheme):
    browser = asked(width, scheme)
    root = "document.documentElement"
    assert browser.run(f"{root}.scrollWidth") <= browser.run(f"{root}.clientWidth")
    browser.run("document.querySelector('button.picture').click()")
    assert browser.run(
        "document.querySelector('#large').getBoundingClientRect().right <= innerWidth"
    )
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
