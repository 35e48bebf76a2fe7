"""Names of classes in the pictures and pages of reports: text, whole, and never boxes."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from report_subject import Page, make_subject

from metric_learning.engine.evaluate import lettering
from metric_learning.engine.report import plots
from metric_learning.engine.report.embedding_map import map_embeddings
from metric_learning.engine.report.files import is_page, is_picture
from metric_learning.engine.report.page import write_report
from metric_learning.engine.report.subjects import build_subject, plain_image_set

NAMES = ["$a and $b_", "_hidden", "红色", "two\nlines", "c\\d", "\udcff", "^{", "%s"]


@pytest.fixture
def subject():
    """Eight classes with names that mean something to matplotlib, to HTML or to nobody."""
    subject = make_subject()
    names = dict(zip(np.unique(subject.labels).tolist(), NAMES, strict=True))
    images = replace(plain_image_set(["a"] * 60, subject.labels), class_names=names)
    made = build_subject(images, subject.embeddings, {}, {}, [])
    return replace(made, read_image=subject.read_image)


def test_a_report_shows_every_name(subject, tmp_path, monkeypatch):
    legends, save = [], plots._save

    def keep_legend(figure, picture):
        legends.append(figure.axes[0].get_legend())
        save(figure, picture)

    monkeypatch.setattr(plots, "_save", keep_legend)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # of letters that no font has
        file = write_report(subject, tmp_path / "report", torch.device("cpu"), 0)

    shown = [text.get_text() for text in legends[0].get_texts()]
    numbers, shown = zip(*(text.split(": ", 1) for text in shown), strict=True)
    assert [*map(int, numbers)] == [*range(1, 9)]
    assert shown[0] == "$a and $b_" and shown[1] == "_hidden"
    assert list(shown[3:]) == ['"two\\nlines"', '"c\\\\d"', "\\udcff", "^{", "%s"]
    page = Page(file.read_text(encoding="utf-8"))
    assert '"two\\nlines"' in page.text and "\\udcff" in page.text and "红色" in page.text
    assert is_page(file) and is_picture(tmp_path / "report" / "map.png")


def test_letters_that_no_font_has_are_escapes(monkeypatch):
    monkeypatch.setattr(lettering, "_other_fonts", lambda: ())
    assert lettering.plain_text("红 cup") == ("\\u7ea2 cup", ["sans-serif"])
    monkeypatch.setattr(lettering, "_other_fonts", lambda: (("Some CJK", "cjk.ttf"),))
    own = lettering.letters_of
    monkeypatch.setattr(
        lettering, "letters_of", lambda file: {0x7EA2} if file == "cjk.ttf" else own(file)
    )
    assert lettering.plain_text("红 cup") == ("红 cup", ["sans-serif", "Some CJK"])


def test_a_map_of_one_class_named_by_a_formula_is_drawn(subject, tmp_path):
    layout = map_embeddings(subject.embeddings, subject.labels)
    names = dict.fromkeys(subject.class_names, "$\\frac{")
    plots.plot_map(layout, subject.labels, names, tmp_path / "map.png")
    assert is_picture(tmp_path / "map.png")
