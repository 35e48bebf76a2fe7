"""Tables with queries, gallery, cameras, boxes and junk, from the shell to the figures."""

import csv
import json

import numpy as np
import pytest

import eval as eval_script
import train_elem
from metric_learning.engine.report.data import Subject, find, sample_pairs
from metric_learning.reader import load_image_set
from metric_learning.retrieval.unit import unit_rows

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--model=test_resnet", "--transform=standard", "--image_shape=3,32,16", *MACHINE]


@pytest.fixture(scope="module")
def table(toy_tree, tmp_path_factory):
    """Flags of a table with other names of columns, two parts of each photo, three cameras."""
    file = tmp_path_factory.mktemp("table") / "photos.csv"
    rng = np.random.default_rng(0)
    rows = []
    for path in sorted(toy_tree.rglob("*.png")):
        part = "train" if "train" in path.parts else "gallery"
        for box in ((0, 0, 20, 32), (20, 0, 40, 32)):
            role = part if part == "train" or rng.random() < 0.6 else "query"
            rows.append([path.relative_to(toy_tree), path.parent.name, role, rng.integers(3), *box])
    rows.append([rows[0][0], "-1", "gallery", 0, 1, 1, 9, 9])
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, delimiter=";")
        writer.writerows([["file", "who", "part", "cam", "x_1", "y_1", "x_2", "y_2"], *rows])
    names = ["--path_column=file", "--label_column=who", "--split_column=part"]
    data = ["--dataset=csv", f"--csv={file}", f"--data_dir={toy_tree}", "--group_column=cam"]
    return [*data, *names]


@pytest.fixture(scope="module")
def checkpoint(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = ["--loss_name=softmax", "--train_batch_size=8", "--total_iter_num=3"]
    flags += ["--test_iter_step=3", f"--model_save_dir={folder}", f"--cache={folder / 'cache'}"]
    return train_elem.main([*table, *MODEL, *flags]) / "last.pt"


def loop(images, features):
    """Recall@1 and mean average precision as the rule of Market-1501 has them."""
    cosines = (unit_rows(features) @ unit_rows(features).T).numpy()
    firsts, averages = [], []
    for query in np.flatnonzero(images.is_query):
        gallery = np.flatnonzero(images.is_gallery)
        order = gallery[np.argsort(-cosines[query, gallery], kind="stable")]
        is_same = images.labels[order] == images.labels[query]
        hits = is_same[~(is_same & (images.groups[order] == images.groups[query]))]
        if hits.any():
            firsts.append(hits[0])
            precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            averages.append(precisions[hits].mean())
    return np.mean(firsts), np.mean(averages), len(firsts)


def test_a_training_and_its_test_follow_the_rule(table, checkpoint, tmp_path, capsys):
    kept = tmp_path / "features.npy"
    result = eval_script.main(
        [f"--pretrained_model={checkpoint}", *MACHINE, f"--features={kept}", "--verification"]
    )
    printed = capsys.readouterr().out
    assert "3 groups; images of a query's class and group do not count" in printed
    assert "1 image of no class" in printed

    options = {flag.split("=")[0][2:]: flag.split("=")[1] for flag in table}
    images = load_image_set(options.pop("dataset"), options.pop("data_dir"), "test", **options)
    recall, average, number = loop(images, np.load(kept))
    assert result["recall@1"] == recall and result["queries"] == number
    assert result["map"] == pytest.approx(average, abs=1e-6)
    assert result["queries"] + result["queries_without_positive"] == images.is_query.sum()
    lines = (checkpoint.parent / "log.txt").read_text()
    assert f"test_recall {recall:.5f}" in lines

    both = eval_script.main(
        ["--compare", str(checkpoint), str(checkpoint), *MACHINE, f"--json={tmp_path / 'c.json'}"]
    )
    assert json.loads((tmp_path / "c.json").read_text()) and "recall@1" in str(both)


@pytest.mark.parametrize("flag", ["--rerank=qe:k=3", "--rerank=kreciprocal:k1=4,k2=2"])
def test_a_second_pass_is_scored_by_the_rule(checkpoint, flag):
    result = eval_script.main([f"--pretrained_model={checkpoint}", *MACHINE, flag])
    plain = eval_script.main([f"--pretrained_model={checkpoint}", *MACHINE])
    assert result["queries"] == plain["queries"] and 0 < result["recall@1"] <= 1


def test_a_report_shows_no_image_that_the_group_rules_out(table):
    options = {flag.split("=")[0][2:]: flag.split("=")[1] for flag in table}
    images = load_image_set(options.pop("dataset"), options.pop("data_dir"), "test", **options)
    features = np.random.default_rng(0).normal(size=(len(images), 8)).astype(np.float32)
    roles = {"is_query": images.is_query, "is_gallery": images.is_gallery}
    subject = Subject(
        title="",
        facts=[],
        flags={},
        records=[],
        embeddings=features,
        labels=images.labels,
        class_names=images.class_names,
        read_image=images.read_image,
        groups=images.groups,
        **roles,
    )
    found = find(subject)
    is_same = (images.labels[found.rows][:, None] == images.labels[found.neighbours]) & (
        images.groups[found.rows][:, None] == images.groups[found.neighbours]
    )
    assert not is_same.any() and np.isfinite(found.cosines).all()
    recall, _, number = loop(images, features)
    assert found.scores.columns["recall@1"].mean() == recall and len(found.rows) == number
    is_right = images.labels[found.neighbours[:, 0]] == images.labels[found.rows]
    assert is_right.mean() == recall
    first, second = sample_pairs(subject, True, 200)
    assert len(first) and (images.groups[first] != images.groups[second]).all()
