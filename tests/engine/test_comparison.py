"""The page that compares runs: whose queries flip, against what, and which checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_subject import Page, make_subject

import train_pair
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report.comparison.flips import find_flips
from metric_learning.engine.report.comparison.models import Compared
from metric_learning.engine.report.comparison.page import render_comparison
from metric_learning.engine.report.data import QueryChoice, find, recall_curve
from metric_learning.engine.run.chosen import describe_choice

MACHINE = ["--use_gpu=False", "--num_workers=0"]


def compared(name, seed, **options) -> Compared:
    """A model with embeddings of its own on the images of all."""
    subject = replace(make_subject(), paths=[f"shop/{number}.png" for number in range(60)])
    noise = np.random.default_rng(seed).normal(size=subject.embeddings.shape)
    subject = replace(subject, embeddings=(subject.embeddings + 2 * noise).astype(np.float32))
    found = find(subject)
    return Compared(name, subject, found, recall_curve(found), **options)


def first_is_right(model) -> np.ndarray:
    labels = model.subject.labels
    return labels[model.found.neighbours[:, 0]] == labels[model.found.rows]


def test_flips_are_the_queries_whose_first_neighbour_changes_sides():
    reference, other = compared("a", 1), compared("b", 2)
    flips = find_flips(reference, other, 0)
    before, after = first_is_right(reference), first_is_right(other)
    assert sorted(flips.gained.tolist()) == np.flatnonzero(~before & after).tolist()
    assert sorted(flips.lost.tolist()) == np.flatnonzero(before & ~after).tolist()
    assert len(flips.gained) > 3 and len(flips.lost) > 3
    assert flips.paired.difference == pytest.approx(after.mean() - before.mean())
    labels = other.subject.labels[other.found.rows]
    first = labels[flips.gained[: len(set(labels[flips.gained].tolist()))]]
    assert len(set(first.tolist())) == len(first)  # one of each class before a second of any


def test_the_page_shows_each_model_beside_the_first_and_chance():
    models = [compared("frozen x", 3, is_baseline=True), compared("_a$", 1), compared("b", 2)]
    flips = [find_flips(models[1], model, 0) for model in (models[0], models[2])]
    html = render_comparison(models, flips, QueryChoice(count=2))
    page = Page(html)
    assert page.headings[:2] == ["frozen x, _a$, b", "Figures"]
    for model in models:
        assert f"{100 * first_is_right(model).mean():.2f}" in page.text
    assert f"{100 * models[0].curve.chances[0]:.2f}" in page.text
    for each in flips:
        assert f"{100 * each.paired.difference:+.2f}" in page.text
        only = f"{each.model.name} against _a$: {len(each.lost)} found by _a$ alone"
        assert only in page.headings
    assert html.count('<article class="query flip">') == 2 * 2 * 2
    assert "shop/" in page.text and ">_a$</text>" in html  # a legend names what it names
    names = {
        attributes["title"]
        for tag, attributes in page.elements
        if attributes.get("class") == "enlarge"
    }
    assert names <= {f"shop/{number}.png" for number in range(60)}


def test_only_chosen_queries_are_shown():
    models = [compared("a", 1), compared("b", 2)]
    flips = [find_flips(models[0], models[1], 0)]
    place = int(flips[0].gained[0])
    path = models[0].subject.paths[models[0].found.rows[place]]
    html = render_comparison(models, flips, QueryChoice((path,)))
    assert html.count('<article class="query flip">') == 1
    assert "None of them is among those that --show names" in html


@pytest.fixture(scope="module")
def runs(toy_flags, tmp_path_factory) -> tuple[Path, Path]:
    """Two runs, of which the second goes on from the first, which began with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*(flag for flag in toy_flags if not flag.startswith("--model=")), "--loss_name=eml"]
    flags += ["--train_batch_size=8", "--total_iter_num=2", f"--model_save_dir={folder}"]
    flags += ["--test_iter_step=1", "--display_iter_step=1", "--lr=0.001"]
    first = train_pair.main([*flags, "--model=test_resnet", "--run_name=one"])
    start = f"--pretrained_model={first / 'last.pt'}"
    return first, train_pair.main([*flags, start, "--run_name=two"])


def test_runs_are_compared_with_what_they_began_with(runs, capsys):
    file = report.main([*map(str, runs), *MACHINE])
    assert file == runs[0].parent / "comparison" / "index.html"
    page = Page(file.read_text(encoding="utf-8"))
    assert page.headings[0] == "frozen random weights, one, two"
    assert "best.pt, step" in page.text and "on the test split" in page.text
    out = capsys.readouterr().out
    assert "chosen by tests on these very images (test split)" in out
    assert "two against one: recall@1" in out
    file = report.main([*map(str, runs), *MACHINE, "--baseline=none"])
    assert Page(file.read_text(encoding="utf-8")).headings[0] == "one, two"


def test_a_baseline_that_is_gone_is_left_out_unless_it_is_asked_for(runs, tmp_path, capsys):
    moved = tmp_path / "moved.pt"
    start = runs[0] / "last.pt"
    start.rename(moved)
    try:
        file = report.main([str(runs[1]), str(runs[0]), *MACHINE])
        assert Page(file.read_text(encoding="utf-8")).headings[0] == "two, one"
        assert "no frozen baseline" in capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            report.main([str(runs[1]), "--baseline=start", *MACHINE])
        assert stop.value.code == 2 and "give it as --baseline=FILE" in capsys.readouterr().err
        file = report.main([str(runs[1]), f"--baseline={moved}", *MACHINE])
        assert Page(file.read_text(encoding="utf-8")).headings[0] == "frozen moved, two"
    finally:
        moved.rename(start)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{one}", "{one}"], "is named twice"),
        (["{one}", "nowhere"], "nowhere does not exist"),
        (["{one}"] * 9, "at most 8 runs"),
        (["{one}", "{two}", "--show=no such class"], "none of 16 images has that"),
        (["{one}", "{two}", "--baseline=nowhere.pt"], "nowhere.pt"),
        (["{one}", "{two}", "--num_queries=0"], "expected an integer of at least 1"),
    ],
)
def test_wrong_comparisons_are_one_line(argv, message, runs, capsys):
    words = [word.format(one=runs[0], two=runs[1]) for word in argv]
    with pytest.raises(SystemExit) as stop:
        report.main([*words, *MACHINE])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


META = {
    "step": 40,
    "flags": {"dataset": "demo", "total_iter_num": 40},
    "depends_on": {"train": "…", "test": "…"},
}
HELD_OUT = META | {"depends_on": {"train": "…", "val": "…"}}
STEERED = META | {"flags": META["flags"] | {"patience": 3}}
RECORDS = [{"kind": "test", "step": step} for step in (20, 40, 40)]


@pytest.mark.parametrize(
    ("name", "meta", "split", "words", "warns"),
    [
        ("best.pt", META, "test", "the highest Recall@1 of 2 tests of the run on the test", True),
        ("best.safetensors", META, "all", "on the test split", True),
        ("best.pt", META, "train", "on the test split", False),
        ("best.pt", HELD_OUT, "test", "on the val split", False),
        ("best.pt", HELD_OUT, "val", "on the val split", True),
        ("last.pt", META, "test", "the end of the run; no test chose it", False),
        ("last.pt", STEERED, "test", "decided", True),
        ("step_20.pt", META, "test", "saved at a fixed step", False),
        ("renamed.pt", META, "test", "does not say how it was chosen", False),
        ("imagenet.pt", {}, "test", "nothing says how it was chosen", False),
    ],
)
def test_a_report_says_how_its_checkpoint_was_chosen(name, meta, split, words, warns):
    said, warnings = describe_choice(name, meta, RECORDS, {"dataset": "demo", "split": split})
    assert words in said and bool(warnings) == warns
    other = describe_choice(name, meta, RECORDS, {"dataset": "cars196", "split": split})
    assert other == (said, [])
    unfinished = {**meta, "step": 20} if meta else meta
    assert ("of 40 steps" in describe_choice(name, unfinished, [], {})[0]) == (
        name == "last.pt" and meta is META
    )
