"""The page of a report and its command line."""

import re
import shutil
from dataclasses import replace
from html import escape
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_subject import Page, make_subject, split_roles

import infer
import train_pair
from metric_learning.common.pages import templates_of
from metric_learning.engine.evaluate.open_set import answer_open_set, measure_open_set
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report.data import Subject, UnknownQueries, choose_queries, find
from metric_learning.engine.report.page import TEMPLATES, render
from metric_learning.models import build_model
from metric_learning.models.weights.load import save_weights
from metric_learning.retrieval import evaluate
from metric_learning.retrieval.open_set import rates_at


@pytest.fixture(params=["self", "gallery"])
def subject(request) -> Subject:
    return make_subject(roles=None if request.param == "self" else split_roles(60, 25))


def test_the_page_says_everything_in_order(subject):
    page = Page(render(subject))
    assert page.headings == [
        "a <b>bold</b> model",
        "What was evaluated",
        "Training",
        "Recall@K",
        "Similarities",
        "Queries and their neighbours",
        "Best",
        "Random",
        "Worst",
        "Classes",
        "Confused classes",
        "Map",
    ]
    queries, gallery = subject.is_query, subject.is_gallery
    own = (
        {}
        if subject.is_self_retrieval
        else {
            "gallery_embeddings": subject.embeddings[gallery],
            "gallery_labels": subject.labels[gallery],
        }
    )
    metrics = evaluate(subject.embeddings[queries], subject.labels[queries], (1, 10), **own)
    for name in ("recall@1", "recall@10", "map@r", "r_precision", "map", "mrr"):
        assert f"{100 * metrics[name]:.2f} %" in page.text
    assert "95 % interval" in page.text and "chance" in page.text
    assert "Warning: 8 test classes" in page.text and "--lr_steps" not in page.text


def test_the_page_tells_of_queries_of_unknown_classes():
    """Its figures are those of eval.py's --open_set on the same embeddings, seed and share."""
    subject = make_subject(num_images=1200)
    page = Page(render(subject, seed=3, unknown=UnknownQueries(0.25, 0.7)))
    assert "Nobody in the gallery" in page.headings
    assert ("a", {"href": "#open-set"}) in page.elements
    test = answer_open_set(subject, subject.embeddings, 0.25, 3, "cpu")
    metrics = measure_open_set(test)
    assert metrics["unknown_classes"] == 2 and metrics["unknown_queries"] >= 200
    for name in ("open_set_auroc", "open_set_f1", "dir@far=0.1"):
        assert f"{100 * metrics[name]:.2f}" in page.text
    for threshold in (metrics["open_set_threshold"], metrics["dir_threshold@far=0.1"], 0.7):
        assert f"{threshold:.3f}" in page.text
    for rate in rates_at(test.answers, 0.7).values():
        assert f"{100 * rate:.2f}" in page.text
    assert "at most 10 % false answers" in page.text and "at most 1 %" not in page.text
    assert "Nobody in the gallery" not in Page(render(subject, seed=3)).headings


def test_the_page_needs_nothing_else():
    html = render(make_subject())
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            if name in attributes and tag != "script":
                assert re.match(r"data:|#", attributes[name]), (tag, attributes[name][:80])
        if tag == "img":
            assert attributes["alt"]
        assert tag != "script" or not attributes
    assert "@import" not in html and "url(http" not in html
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes.get("href") for tag, attributes in page.elements if tag == "a"}
    assert targets and all(target[1:] in ids for target in targets)


def test_names_are_text_whatever_they_hold():
    html = render(make_subject())
    assert "<b>bold" not in html and "class <5>" not in html
    assert "class <5> & co" in Page(html).text


def test_neighbours_are_marked_in_words():
    subject = make_subject()
    html = render(subject)
    found = find(subject)
    marks = re.findall(r'<li class="(right|wrong)">.*?<span class="mark">(. \w+)</span>', html)
    assert set(marks) == {("right", "✓ right"), ("wrong", "✗ wrong")}
    shown = [place for places in choose_queries(found.scores, 8).values() for place in places]
    is_right = subject.labels[found.neighbours[shown]] == subject.labels[found.rows[shown], None]
    assert [kind == "right" for kind, _ in marks] == is_right.ravel().tolist()


def test_super_classes_have_a_column():
    subject = make_subject()
    supers = {label: ("even", "odd")[label % 2] for label in subject.class_names}
    with_supers = replace(subject, super_classes=supers)
    assert "Super class" not in render(subject)
    html = render(with_supers)
    assert "Super class" in html
    for label, name in subject.class_names.items():
        own = re.search(rf"<tr><th[^>]*>{escape(name)}</th><td[^>]*>(\w+)</td>", html)
        assert (own is None) == (label not in find(subject).scores.labels)
        assert own is None or own[1] == supers[label]


@pytest.mark.parametrize("num_images", [2, 12])
def test_a_small_or_collapsed_set_has_a_report(num_images):
    subject = make_subject(num_images, 1)
    collapsed = replace(subject, embeddings=np.ones_like(subject.embeddings), records=[])
    text = Page(render(collapsed)).text
    assert "it takes at least ten images" in text and "no training run" in text
    assert (
        "No query has a wrong first neighbour" in text
        and "fewer than 6 classes: no interval" in text
    )


def test_text_has_the_contrast_of_wcag_aa():
    def luminance(colour):
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    style = templates_of(TEMPLATES).get_template("report.css").render()
    of_dark = r"@media \(prefers-color-scheme: dark\) \{\s*:root \{.*?\}"
    parts = re.sub(of_dark, "", style, flags=re.S), "".join(re.findall(of_dark, style, re.S))
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in parts]
    assert all(len(scheme) >= 10 for scheme in schemes)
    for scheme in schemes:
        for text, ground in product(
            ("ink", "muted", "link", "right", "wrong"), ("ground", "panel")
        ):
            dark, light = sorted((luminance(scheme[text]), luminance(scheme[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


@pytest.fixture(scope="module")
def run(toy_flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--train_batch_size=8", "--total_iter_num=2", f"--model_save_dir={folder}"]
    return train_pair.main([*toy_flags, *flags, "--loss_name=eml", "--display_iter_step=1"])


MACHINE = ["--use_gpu=False", "--num_workers=0"]


def test_a_run_folder_gets_its_report(run, capsys):
    file = report.main([*MACHINE, str(run)])
    assert file == run / "report" / "index.html"
    text = Page(file.read_text(encoding="utf-8")).text
    assert "ResNet18 with eml on folder" in text and "samples_each_class 2" in text
    assert "no training run" not in text and "--total_iter_num" in text
    assert "class_8" in text and "32 × 32 px" in text
    out = capsys.readouterr().out
    assert re.search(r"report: \S+index.html, \d+\.\d MB", out)
    with Image.open(run / "report" / "map.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    assert f"map of the embeddings: {run / 'report' / 'map.png'}" in out


def test_a_checkpoint_alone_is_enough(run, tmp_path):
    alone = tmp_path / "weights.safetensors"
    shutil.copy(run / "last.safetensors", alone)
    file = report.main([str(alone), "--split=train", *MACHINE])
    assert file == tmp_path / "report" / "index.html"
    text = Page(file.read_text(encoding="utf-8")).text
    assert "no training run" in text and "24; each is query and gallery" in text


def test_converted_weights_name_no_loss(toy_flags, tmp_path):
    model = build_model("ResNet18")
    facts = {"model": "ResNet18", "embedding_size": 0, "mean": model.mean, "std": model.std}
    save_weights(model, tmp_path / "imagenet.safetensors", facts)
    flags = [flag for flag in toy_flags if not flag.startswith("--model")]
    file = report.main([str(tmp_path / "imagenet.safetensors"), *flags])
    page = Page(file.read_text(encoding="utf-8"))
    assert page.headings[0] == "ResNet18 on folder" and "Trained on" not in page.text


@pytest.mark.parametrize("is_dump", [False, True])
def test_open_set_flags_add_a_section(run, tmp_path, capsys, is_dump):
    source = [*MACHINE, str(run)]
    if is_dump:
        dump = infer.main(
            [f"--pretrained_model={run / 'last.pt'}", f"--output_dir={tmp_path / 'f'}", *MACHINE]
        )
        source = [f"--features={dump}"]
    source.append(f"--report_dir={tmp_path / 'report'}")
    for flags in (["--open_set=0.4"], ["--open_set=0.4", "--unknown_threshold=0.2371"]):
        text = Page(report.main([*source, *flags]).read_text("utf-8")).text
        assert "greatest F1" in text and ("0.237" in text) == (len(flags) > 1)
    with pytest.raises(SystemExit) as stop:
        report.main([*source, "--open_set=0.9"])
    assert stop.value.code == 2 and "give another share" in capsys.readouterr().err


def test_features_are_enough(run, tmp_path):
    features = tmp_path / "features"
    infer.main([f"--pretrained_model={run / 'last.pt'}", f"--output_dir={features}", *MACHINE])
    file = report.main([f"--features={features}", f"--report_dir={tmp_path / 'new'}"])
    assert file == tmp_path / "new" / "index.html"
    with_names = Page(file.read_text(encoding="utf-8")).text
    assert "class_8" in with_names and "ResNet18 with eml" in with_names
    (features / "meta.json").unlink()
    file = report.main([f"--features={features}"])
    assert "unknown model on images" in Page(file.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "labels.txt").unlink(), "holds no labels.txt"),
        (lambda folder: (folder / "labels.txt").write_text("a b"), "a file is damaged"),
        (lambda folder: (folder / "features.npy").write_bytes(b""), "a file is damaged"),
        (lambda folder: (folder / "labels.txt").write_text("0\n1\n"), "expected as many rows"),
        (lambda folder: (folder / "paths.txt").unlink(), "paths.txt: No such file"),
    ],
)
def test_damaged_features_are_one_line(tmp_path, spoil, message, capsys):
    np.save(tmp_path / "features.npy", np.eye(3))
    (tmp_path / "labels.txt").write_text("0\n0\n1\n")
    (tmp_path / "paths.txt").write_text("a.png\nb.png\nc.png\n")
    spoil(tmp_path)
    with pytest.raises(SystemExit) as stop:
        report.main([f"--features={tmp_path}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected a run folder or a checkpoint, or --features"),
        (["x", "--features=y"], "expected a run folder or a checkpoint, or --features"),
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no best.pt and no last.pt"),
        (["--unknown_threshold=2", "x"], "expected a cosine of -1 to 1, found '2'"),
        (["--features=.", "--batch_size=3"], "--batch_size is not used"),
        ([".", "--train_classes=1-2", "--split=all"], "--train_classes is not used"),
    ],
)
def test_wrong_arguments_are_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        report.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error
