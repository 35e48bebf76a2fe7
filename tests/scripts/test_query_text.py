"""infer.py --query_text: search an index of images for what words describe."""

import json

import numpy as np
import pytest
import torch

import infer
import train_elem
from metric_learning.models import build_model
from metric_learning.models.clip import PREFIX
from metric_learning.models.clip_text import embed_texts
from metric_learning.retrieval.indexes import load_search_index

pytest.importorskip("faiss")
open_clip = pytest.importorskip("open_clip")

MACHINE = ["--use_gpu=False"]
MODEL = ["--num_workers=0", f"--model={PREFIX}tiny", "--image_shape=3,32,32"]
TEXTS = ["a red sofa", "two dogs, asleep"]


@pytest.fixture(scope="module")
def weights(tiny_clips, tmp_path_factory):
    """Weights of both towers, of two random models."""
    folder = tmp_path_factory.mktemp("clip")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("tiny").state_dict(), folder / f"{seed}.pt")
    return folder


@pytest.fixture(scope="module")
def built(weights, toy_tree, tmp_path_factory):
    """An index of 40 images by the first model."""
    file = tmp_path_factory.mktemp("index") / "toy.index"
    return infer.main(
        [*MACHINE, *MODEL, f"--images={toy_tree}", "--batch_size=16"]
        + [f"--pretrained_model={weights / '0.pt'}", f"--index={file}"]
    )


@pytest.fixture
def ask(weights, built):
    """Flags of a search with the weights that built the index."""
    return [*MACHINE, f"--pretrained_model={weights / '0.pt'}", f"--index={built}"]


@pytest.fixture
def fails(error_of, monkeypatch, tmp_path):
    """Run infer.py, which must fail, and return its one line."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags: error_of(infer.main, flags)


def test_texts_are_ranked_by_their_cosine_to_the_images(
    ask, built, weights, toy_tree, tmp_path, capsys
):
    infer.main(
        [*MACHINE, *MODEL, f"--images={toy_tree}", f"--output_dir={tmp_path}"]
        + [f"--pretrained_model={weights / '0.pt'}", "--batch_size=16"]
    )
    assert "visual" not in capsys.readouterr().out.split("left out: ")[1].splitlines()[0]
    images = np.load(tmp_path / "features.npy").astype(np.float64)
    texts = embed_texts(f"{PREFIX}tiny", weights / "0.pt", TEXTS).astype(np.float64)
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    cosines = texts @ images.T
    answers = infer.main(
        [*ask, *(f"--query_text={text}" for text in TEXTS), "--topk=40"]
        + [f"--json={tmp_path / 'answers.json'}"]
    )
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("query")] == [f"query {t}" for t in TEXTS]
    paths = load_search_index(built).paths
    for answer, text, expected in zip(answers, TEXTS, cosines, strict=True):
        assert list(answer) == ["text", "neighbours", "is_none"] and answer["text"] == text
        assert answer["is_none"] is False  # words have no threshold but a given one
        found = answer["neighbours"]
        assert [one["row"] for one in found] == np.argsort(-expected, kind="stable").tolist()
        np.testing.assert_allclose([one["cosine"] for one in found], -np.sort(-expected), atol=1e-5)
        assert [one["path"] for one in found] == [paths[one["row"]] for one in found]
    assert json.loads((tmp_path / "answers.json").read_text())["queries"] == answers


def test_a_config_lists_texts(ask, tmp_path):
    (tmp_path / "ask.yaml").write_text(f"query_text: {json.dumps(TEXTS)}\ntopk: 1\n")
    answers = infer.main([*ask, f"--config={tmp_path / 'ask.yaml'}"])
    assert [answer["text"] for answer in answers] == TEXTS


def test_an_index_answers_only_to_the_weights_that_built_it(fails, ask, weights):
    other = f"--pretrained_model={weights / '1.pt'}"
    assert "built with other weights" in fails(ask[0], other, ask[2], "--query_text=a cat")
    assert "expected --pretrained_model=FILE" in fails(ask[0], ask[2], "--query_text=a cat")
    error = fails(*ask, "--query_text=a cat", "--model=ResNet18")
    assert "was made with --model=" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--query=a.jpg"], "expected --query or --query_text, found both"),
        (["--batch_size=2"], "--batch_size is not used (--query_text reads no images)"),
        (["--images=photos"], "--images is not used (--query_text searches the images of --index)"),
        (["--query_text= "], "--query_text has an empty value"),
        (["--topk=41"], "--topk=41"),
        ([f"--query_text={'word ' * 99}"], "reads at most 14: shorten"),
    ],
)
def test_flags_that_do_not_fit_are_refused(fails, ask, flags, words):
    assert words in fails(*ask, "--query_text=a cat", *flags)


def test_an_index_is_needed(fails, ask):
    assert "--query_text searches an index" in fails(*ask[:2], "--query_text=a cat")
    assert "without --query or --query_text" in fails(*ask, "--json=a.json")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("random", "expected --pretrained_model=FILE, weights of both towers"),
        ("resnet.pt", "ResNet18 embeds images alone: to search with texts, build the index with"),
    ],
)
def test_other_weights_say_what_is_needed(weights, words, fails, toy_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(build_model("ResNet18").state_dict(), "resnet.pt")
    flags = [f"--pretrained_model={weights}", "--index=a.index"]
    infer.main([*toy_flags, *flags, "--batch_size=16"])
    assert words in fails(*MACHINE, *flags, "--query_text=a cat")


def test_a_fine_tuned_tower_embeds_images_and_has_no_words(
    fails, weights, toy_flags, toy_tree, tmp_path
):
    run = train_elem.main(
        [*toy_flags, f"--model={PREFIX}tiny", f"--pretrained_model={weights / '0.pt'}"]
        + ["--train_batch_size=8", "--total_iter_num=2", "--test_iter_step=2", "--lr=0.001"]
        + [f"--model_save_dir={tmp_path}", "--with_mem_opt=True"]
    )
    assert run.name == "open_clip_tiny_softmax"
    tuned = [*MACHINE, f"--pretrained_model={run / 'last.pt'}", f"--index={tmp_path / 'a.index'}"]
    infer.main([*tuned, "--num_workers=0"])
    image = sorted((toy_tree / "test").glob("*/*.png"))[3]
    best = infer.main([*tuned, f"--query={image}", "--topk=1"])[0]["neighbours"][0]
    assert best["path"] == str(image) and best["cosine"] == pytest.approx(1, abs=1e-5)
    assert "last.pt holds no text tower" in fails(*tuned, "--query_text=a cat")
