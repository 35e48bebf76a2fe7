"""Tests that could not be scored are refused before any work, at every door that tests."""

import numpy as np
import pytest

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.embed import embedder
from metric_learning.engine.evaluate.scoring import check_scorable
from metric_learning.engine.report import __main__ as report
from metric_learning.reader import ImageSet
from metric_learning.retrieval.rerank import check_rerank, parse_rerank

NOTHING_TO_FIND = "none of its 4 queries has another image of its class in the gallery of 4"


@pytest.fixture
def one_each(toy_tree, tmp_path):
    """A tree whose test classes have one image each."""
    for split in ("train", "test"):
        for folder in sorted((toy_tree / split).iterdir()):
            (tmp_path / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[: None if split == "train" else 1]:
                (tmp_path / split / folder.name / file.name).symlink_to(file)
    return tmp_path


@pytest.fixture
def flags(toy_flags, one_each, monkeypatch):
    """Flags of that tree; nothing may be embedded."""
    monkeypatch.setattr(embedder, "embed_images", lambda *_, **__: pytest.fail("embedded"))
    return [*(f for f in toy_flags if not f.startswith("--data_dir")), f"--data_dir={one_each}"]


@pytest.mark.parametrize("script", [train_elem, train_pair])
def test_a_training_is_refused_before_its_first_step(error_of, flags, tmp_path, script):
    steps = ["--total_iter_num=1", "--train_batch_size=6", f"--model_save_dir={tmp_path / 'runs'}"]
    assert NOTHING_TO_FIND in error_of(script.main, [*flags, *steps])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("main", "choice"),
    [
        (eval_script.main, ["--pretrained_model=random"]),
        (eval_script.main, ["--compare", "random", "random"]),
        (report.main, ["random", "--report_dir={folder}/report"]),
    ],
    ids=["eval", "compare", "report"],
)
def test_an_evaluation_is_refused_before_it_embeds(
    error_of, flags, one_each, main, choice, monkeypatch
):
    monkeypatch.setattr(report, "find_sources", lambda *_: [report.Path("random")])
    choice = [flag.format(folder=one_each) for flag in choice]
    assert NOTHING_TO_FIND in error_of(main, [*choice, *flags])


def image_set(labels, is_query=None, is_gallery=None):
    labels = np.array(labels, np.int64)
    roles = [
        np.ones(len(labels), bool) if role is None else np.array(role, bool)
        for role in (is_query, is_gallery)
    ]
    names = {label: str(label) for label in set(labels.tolist())}
    return ImageSet("toy", "test", [str(n) for n in range(len(labels))], labels, names, *roles)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2, 3],), "none of its 3 queries"),
        (([1, 1, 2, 2], [1, 1, 0, 0], [0, 0, 1, 1]), "none of its 2 queries .* gallery of 2"),
        (([1, 1], [1, 1], [0, 0]), "no image among its gallery"),
        (([1, 1], [0, 0], [1, 1]), "no image among its queries"),
        (([],), "no image among its queries"),
    ],
)
def test_what_cannot_be_scored(arguments, words):
    with pytest.raises(ValueError, match=words):
        check_scorable(image_set(*arguments))


@pytest.mark.parametrize("arguments", [([1, 1, 2],), ([1, 1], [1, 0], [0, 1])])
def test_what_can_be_scored(arguments):
    check_scorable(image_set(*arguments))


@pytest.mark.parametrize(
    ("text", "num_queries", "gallery_size"),
    [
        ("qe:k=4", 4, None),
        ("qe:k=5", 9, 4),
        ("dba:k=4", 9, 4),
        ("kreciprocal:k1=4,k2=2", 4, None),
        ("kreciprocal:k1=3,k2=4", 9, None),
        ("qe:k=1,alpha=-1", 4, None),
    ],
)
def test_a_re_ranking_of_too_few_images(text, num_queries, gallery_size):
    with pytest.raises(ValueError):
        check_rerank(parse_rerank(text), num_queries, gallery_size)


@pytest.mark.parametrize("text", ["qe:k=4", "kreciprocal:k1=5,k2=2"])
def test_a_re_ranking_of_queries_that_a_gallery_holds(text):
    with pytest.raises(ValueError, match="expected k1? to be 1 to"):
        check_rerank(parse_rerank(text), 3, 4, num_both=2)
    check_rerank(parse_rerank(text), 3, 4 + 2, num_both=2)


@pytest.mark.parametrize(
    ("text", "gallery_size"), [("qe:k=3", None), ("dba:k=3", 4), ("kreciprocal:k1=3,k2=2", None)]
)
def test_a_re_ranking_of_enough_images(text, gallery_size):
    check_rerank(parse_rerank(text), 4, gallery_size)
