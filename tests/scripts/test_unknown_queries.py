"""Queries that nobody in the gallery answers: eval.py --open_set, infer.py --unknown_threshold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
import infer
import metric_learning
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.evaluate.open_set import (
    answer_open_set,
    choose_unknown,
    measure_open_set,
)
from metric_learning.engine.options.evaluation import settle_queries
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.world import World
from metric_learning.engine.search.threshold import Images, calibrate
from metric_learning.reader import load_image_set
from metric_learning.retrieval.indexes import load_search_index
from metric_learning.retrieval.open_set import Answers, best_threshold, rates_at
from metric_learning.retrieval.unit import unit_rows

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32", *MACHINE]


@pytest.fixture
def of_tree(toy_tree):
    return [*MODEL, "--dataset=folder", f"--data_dir={toy_tree}"]


@pytest.fixture
def foreign(tmp_path):
    """A picture like none of the tree."""
    pixels = np.random.default_rng(0).integers(0, 2, (40, 40, 1), np.uint8) * np.uint8(255)
    Image.fromarray(np.repeat(pixels, 3, 2)).save(tmp_path / "foreign.png")
    return tmp_path / "foreign.png"


@pytest.mark.parametrize("kind", ["self", "roles", "groups"])
def test_open_set_scores_are_those_of_a_loop(kind, toy_tree):
    images = load_image_set("folder", toy_tree, "all")
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(len(images), 4)) + images.labels[:, None] % 4
    if kind != "self":
        is_query = rng.random(len(images)) < 0.5
        images = replace(images, is_query=is_query, is_gallery=~is_query)
    if kind == "groups":
        images = replace(images, groups=rng.integers(-1, 2, len(images)))

    device = torch.device("cpu")
    found = measure_open_set(answer_open_set(images, embeddings, 0.3, 0, device))
    unknown = choose_unknown(images, 0.3, 0)
    assert len(unknown) == found["unknown_classes"] == 3
    cosines = (unit_rows(embeddings) @ unit_rows(embeddings).T).numpy()
    known, in_vain = [], []
    for query in np.flatnonzero(images.is_query):
        others = images.is_gallery & ~np.isin(images.labels, unknown)
        others[query] = False
        is_same = images.labels == images.labels[query]
        if kind == "groups" and images.groups[query] >= 0:
            others &= ~(is_same & (images.groups == images.groups[query]))
        best = np.flatnonzero(others)[np.argmax(cosines[query, others])]
        if images.labels[query] in unknown:
            in_vain.append(cosines[query, best])
        elif (others & is_same).any():
            known.append(cosines[query, best])
    assert (found["known_queries"], found["unknown_queries"]) == (len(known), len(in_vain))
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in known for b in in_vain])
    assert found["open_set_auroc"] == pytest.approx(expected, abs=1e-6)


def test_eval_prints_and_keeps_open_set_and_thresholds(of_tree, capsys, tmp_path):
    kept = tmp_path / "result.json"
    flags = ["--split=all", "--open_set=0.2", "--verification", f"--json={kept}"]
    result = eval_script.main([*of_tree, *flags])
    printed = capsys.readouterr().out
    assert "open set: 2 classes left out of the gallery, 32 queries of known classes, 8" in printed
    assert "open_set_auroc " in printed and "open_set_threshold " in printed
    assert "threshold@far=0.1 " in printed and -1 <= result["threshold@far=0.1"] <= 1
    assert json.loads(kept.read_text())["open_set_auroc"] == result["open_set_auroc"]
    other = eval_script.main([*of_tree, "--split=all", "--open_set=0.2", "--seed=1"])
    assert other["open_set_threshold"] != result["open_set_threshold"]


def test_a_share_of_no_class_or_of_all_is_one_line(of_tree, error_of):
    for share in (0.01, 0.99):
        error = error_of(eval_script.main, [*of_tree, "--split=all", f"--open_set={share}"])
        assert f"--open_set={share}: of 10 classes" in error
    assert "--open_set" in error_of(
        eval_script.main, [*of_tree, "--open_set=0.2", "--distance=euclidean"]
    )


def test_an_index_keeps_its_threshold_and_answers_none(
    of_tree, foreign, toy_tree, tmp_path, capsys
):
    index = tmp_path / "a.index"
    build = [*of_tree, "--split=all", f"--index={index}", "--unknown_threshold=auto"]
    infer.main(build)
    printed = capsys.readouterr().out
    threshold = load_search_index(index).metadata["unknown_threshold"]
    assert f"none below a cosine of {threshold['cosine']:.4f}: with 40 queries of the " in printed
    assert {"missed", "false_answers", "right", "f1", "queries", "images"} < set(threshold)

    own = toy_tree / "test" / "class_6" / "0.png"
    ask = [*MODEL, f"--index={index}", "--topk=2"]
    [answer] = infer.main([*ask, f"--query={own}"])
    assert not answer["is_none"] and answer["neighbours"][0]["cosine"] > 0.999
    kept = tmp_path / "answers.json"
    [answer] = infer.main(
        [*ask, f"--query={own}", "--unknown_threshold=1", f"--json={kept}", "--seed=0"]
    )
    assert json.loads(kept.read_text())["unknown_threshold"] == 1
    capsys.readouterr()
    [answer] = infer.main([*ask, f"--query={foreign}", "--unknown_threshold=0.9999"])
    printed = capsys.readouterr().out
    assert answer["is_none"] and "none: the nearest image has a cosine of" in printed
    assert "class_" not in printed
    [answer] = infer.main([*ask, f"--query={foreign}", "--unknown_threshold=off"])
    assert not answer["is_none"]


def test_answers_of_a_program_say_none_too(toy_tree, foreign, weights, tmp_path):
    index = tmp_path / "a.index"
    flags = [*MODEL[1:], f"--pretrained_model={weights}", f"--images={toy_tree}"]
    infer.main([*flags, f"--index={index}", "--unknown_threshold=0.99999"])
    model = Embedder.of(settle_queries(str(index), None, num_workers=0, batch_size=1)[1])
    own = str(toy_tree / "test" / "class_6" / "0.png")
    opened = metric_learning.open_index(index, model)
    assert opened.threshold == 0.99999
    found = opened.search(own, topk=3)
    assert not found.is_none and isinstance(found, list) and len(found) == 3
    assert found[0]["path"] == own and json.loads(json.dumps(found)) == found
    both = opened.search([own, str(foreign)], topk=2)
    assert [answer.is_none for answer in both] == [False, True] and both[1][0]["rank"] == 1

    for given, expected in ((0.5, 0.5), ("auto", 0.99999), ("off", None)):
        other = metric_learning.open_index(index, model, unknown_threshold=given)
        assert other.threshold == expected
        assert other.search(str(foreign)).is_none is (expected == 0.99999)
    for wrong in (2, "often", float("nan"), True):
        with pytest.raises(ValueError, match="expected unknown_threshold to be a cosine of -1"):
            metric_learning.open_index(index, model, unknown_threshold=wrong)


def test_the_val_split_calibrates_where_there_is_one(of_tree, tmp_path, capsys):
    index = tmp_path / "a.index"
    build = [*of_tree, "--val_fold=0/2", f"--index={index}", "--unknown_threshold=auto"]
    infer.main(build)
    threshold = load_search_index(index).metadata["unknown_threshold"]
    assert threshold["images"] == "val split" and threshold["queries"] == 12


@pytest.mark.parametrize("kind", ["inside", "outside", "same"])
def test_a_threshold_is_calibrated_by_the_images_that_it_will_serve(kind, toy_tree):
    """Those of the val split ask the whole index, themselves left out; a loop says the same."""
    whole = load_image_set("folder", toy_tree, "all")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((whole.num_classes, 6))
    features = centres[whole.labels] + 0.8 * rng.standard_normal((len(whole), 6))
    features = unit_rows(features.astype(np.float32)).numpy()
    is_tried = rng.permutation(len(whole)) < 15
    is_indexed = np.ones(len(whole), bool) if kind != "outside" else ~is_tried
    tried, indexed = (
        Images(features[part], whole.select(np.flatnonzero(part)), "val split")
        for part in (is_tried, is_indexed)
    )
    found = calibrate(
        indexed if kind == "same" else tried,
        indexed,
        MachineOptions(World(), torch.device("cpu"), None, 0, 0),
    )

    asking = np.flatnonzero(is_indexed if kind == "same" else is_tried)
    known, right, unknown = [], [], []
    for query in asking:
        cosines = features @ features[query]
        is_same, others = whole.labels == whole.labels[query], np.arange(len(whole)) != query
        unknown.append(cosines[~is_same].max())
        if (is_same & others).any():
            best = np.flatnonzero(others)[np.argmax(cosines[others])]
            known.append(cosines[best])
            right.append(is_same[best])
    answers = Answers(np.array(known), np.array(right), np.array(unknown))
    assert found["cosine"] == pytest.approx(best_threshold(answers), abs=1e-6)
    rates = rates_at(answers, found["cosine"])
    assert {name: found[name] for name in rates} == pytest.approx(rates, abs=1e-6)


def test_a_given_threshold_is_kept(toy_tree, foreign, tmp_path):
    index = tmp_path / "a.index"
    infer.main([*MODEL, f"--images={toy_tree}", f"--index={index}", "--unknown_threshold=0.99999"])
    assert load_search_index(index).metadata["unknown_threshold"] == {"cosine": 0.99999}
    ask = [*MODEL, f"--index={index}", f"--query={foreign}", "--topk=1"]
    assert infer.main(ask)[0]["is_none"]
    assert infer.main([*ask, "--unknown_threshold=auto"])[0]["is_none"]


def test_what_cannot_be_is_one_line(toy_tree, of_tree, foreign, tmp_path, error_of):
    index = tmp_path / "a.index"
    plain = [*MODEL, f"--images={toy_tree}", f"--index={index}"]
    error = error_of(infer.main, [*plain, "--unknown_threshold=auto"])
    assert "needs two classes, and two images of one" in error and not index.exists()
    infer.main(plain)
    ask = [*MODEL, f"--index={index}", f"--query={foreign}"]
    error = error_of(infer.main, [*ask, "--unknown_threshold=auto"])
    assert "the index holds no threshold: build it with that flag" in error
    for wrong in ("2", "often", "nan"):
        error = error_of(infer.main, [*ask, f"--unknown_threshold={wrong}"])
        assert "expected a cosine of -1 to 1, auto or off" in error
    error = error_of(infer.main, [*of_tree, "--unknown_threshold=0.5"])
    assert "--unknown_threshold is not used (without --index)" in error
