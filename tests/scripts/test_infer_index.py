"""infer.py --index and --query: build a search index, ask it, and refuse what does not fit."""

import json
import re

import numpy as np
import pytest
import torch

import infer
import train_elem
from metric_learning.models import build_model
from metric_learning.reader import load_index
from metric_learning.retrieval import nearest
from metric_learning.retrieval.indexes import load_search_index

pytest.importorskip("faiss")

MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights without metadata, of two random models."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(build_model("ResNet18").state_dict(), folder / f"{seed}.pth")
    return folder


@pytest.fixture(scope="module")
def built(weights, toy_flags, tmp_path_factory):
    """An exact index of the toy tree's test images."""
    file = tmp_path_factory.mktemp("index") / "new" / "toy.index"
    assert (
        infer.main([*toy_flags, f"--pretrained_model={weights / '0.pth'}", f"--index={file}"])
        == file
    )
    return file


@pytest.fixture(scope="module")
def features(weights, toy_flags, tmp_path_factory):
    """The features that infer.py dumps of the same images."""
    folder = tmp_path_factory.mktemp("dump")
    infer.main([*toy_flags, f"--pretrained_model={weights / '0.pth'}", f"--output_dir={folder}"])
    return np.load(folder / "features.npy")


@pytest.fixture
def fails(error_of, monkeypatch, tmp_path):
    """Run infer.py, which must fail, and return its one line."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags: error_of(infer.main, [*MACHINE, *flags])


def test_an_index_of_a_data_set_knows_paths_and_classes(built, toy_tree):
    index, expected = load_search_index(built), load_index("folder", toy_tree, "test")
    assert index.kind == "exact" and index.paths == expected.paths
    assert (index.labels == expected.labels).all() and index.class_names == expected.class_names
    assert index.metadata["fingerprint"].startswith("sha256:")


def test_building_prints_no_features_and_writes_no_dump(
    weights, toy_flags, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    infer.main([*toy_flags, f"--pretrained_model={weights / '0.pth'}", "--index=a.index"])
    assert [file.name for file in tmp_path.iterdir()] == ["a.index"]
    out = capsys.readouterr().out
    assert "feature" not in out and "recall" not in out
    assert out.splitlines()[-1].endswith("exact index of 16 images in a.index")


def test_a_query_prints_its_neighbours(built, weights, features, toy_tree, tmp_path, capsys):
    image = toy_tree / "test" / "class_8" / "2.png"
    index = load_search_index(built)
    own = index.paths.index(str(image))
    capsys.readouterr()
    answers = infer.main(
        [*MACHINE, f"--pretrained_model={weights / '0.pth'}", f"--index={built}"]
        + [f"--query={image}", "--topk=5", f"--json={tmp_path / 'new' / 'answer.json'}"]
    )
    rows, cosines = nearest(features[[own]], features, 5)
    assert rows[0, 0] == own
    out = capsys.readouterr().out
    assert "-feature" not in out
    lines = out.splitlines()[-6:]
    assert lines[0] == f"query {image}"
    for n, line in enumerate(lines[1:]):
        rank, cosine, path, name = line.split()
        row = rows[0, n]
        assert (int(rank), path) == (n + 1, index.paths[row])
        assert float(cosine) == pytest.approx(cosines[0, n], abs=1e-4)
        assert name == index.class_name(row) == f"class_{re.search('class_([0-9]+)', path)[1]}"
    written = json.loads((tmp_path / "new" / "answer.json").read_text())
    assert written["queries"] == answers and written["index"] == str(built)
    assert [found["row"] for found in answers[0]["neighbours"]] == rows[0].tolist()


def test_a_folder_of_queries_is_answered_in_order(built, weights, toy_tree):
    answers = infer.main(
        [*MACHINE, f"--pretrained_model={weights / '0.pth'}", f"--index={built}"]
        + [f"--query={toy_tree / 'test'}", "--topk=1", "--batch_size=3"]
    )
    paths = sorted(map(str, (toy_tree / "test").glob("*/*.png")))
    assert [answer["path"] for answer in answers] == paths
    assert [answer["neighbours"][0]["path"] for answer in answers] == paths


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ivf", "nlist=4,nprobe=1"), ("hnsw", "m=32"), ("hnsw", "ef_search=7")],
)
def test_approximate_indexes_report_their_recall(
    weights, toy_tree, tmp_path, capsys, kind, options
):
    flags = [f"--index_type={kind}", f"--index_options={options}"]
    infer.main(
        [*MACHINE, "--model=ResNet18", "--image_shape=3,32,32", f"--images={toy_tree}", *flags]
        + [f"--pretrained_model={weights / '0.pth'}", f"--index={tmp_path / 'a.index'}"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"{kind} index of 40 images in" in lines[-2]
    assert all(part.replace("=", " ") in lines[-2] for part in options.split(","))
    recall = re.search(r"finds ([01]\.\d{4}) of the exact 10 nearest, .* 40 of its", lines[-1])
    assert 0 < float(recall[1]) <= 1
    index = load_search_index(tmp_path / "a.index")
    assert index.kind == kind and index.class_name(0) is None


def test_queries_are_embedded_as_the_index_was(toy_flags, toy_tree, tmp_path):
    run = train_elem.main(
        [*toy_flags, "--train_batch_size=8", "--total_iter_num=1", "--test_iter_step=0"]
        + [f"--model_save_dir={tmp_path}"]
    )
    checkpoint = [*MACHINE, f"--pretrained_model={run / 'last.pt'}"]
    index = f"--index={tmp_path / 'a.index'}"
    # Another size and transform than the checkpoint's: the query has to be given neither.
    infer.main([*checkpoint, index, "--image_shape=3,64,64", "--transform=standard"])
    image = sorted((toy_tree / "test").glob("*/*.png"))[5]
    answers = infer.main([*checkpoint, index, f"--query={image}", "--topk=1"])
    best = answers[0]["neighbours"][0]
    assert best["path"] == str(image) and best["cosine"] == pytest.approx(1, abs=1e-5)


def test_random_weights_are_those_of_their_seed(fails, toy_flags, toy_tree, tmp_path):
    index = f"--index={tmp_path / 'a.index'}"
    infer.main([*toy_flags, "--pretrained_model=random", "--seed=3", index])
    query = ["--pretrained_model=random", index, f"--query={toy_tree / 'test'}"]
    answers = infer.main([*MACHINE, *query, "--seed=3", "--topk=2"])
    assert all(answer["neighbours"][0]["cosine"] > 0.9999 for answer in answers)
    assert "other weights (random)" in fails(*query)


def test_an_index_is_replaced_but_no_other_file(fails, weights, toy_flags, tmp_path):
    flags = [*toy_flags, f"--pretrained_model={weights / '0.pth'}"]
    for _ in range(2):
        infer.main([*flags, f"--index={tmp_path / 'a.index'}"])
    text = tmp_path / "notes.txt"
    text.write_text("keep me")
    assert "notes.txt exists and is not a search index" in fails(*flags, f"--index={text}")
    assert text.read_text() == "keep me"
    assert "found a folder" in fails(*flags, f"--index={tmp_path}")
    assert "--index=/proc/a/b cannot be written" in fails(*flags, "--index=/proc/a/b")


def test_other_weights_than_the_index_s_are_refused(fails, built, weights, toy_tree):
    query = [f"--index={built}", f"--query={toy_tree / 'test'}"]
    error = fails(*query, f"--pretrained_model={weights / '1.pth'}")
    assert "toy.index was built with other weights" in error and "1.pth" in error
    assert "--pretrained_model=CHECKPOINT" in fails(*query)
    assert "nowhere.pt" in fails(*query, "--pretrained_model=nowhere.pt")


def test_a_query_that_cannot_be_answered_is_one_line(fails, built, weights, toy_tree, tmp_path):
    base = [f"--pretrained_model={weights / '0.pth'}", f"--query={toy_tree / 'test'}"]
    ask = [*base, f"--index={built}"]
    assert "--query searches an index" in fails(*base)
    assert "--query has an empty value" in fails(*ask, "--query=")
    assert "nowhere.index" in fails(*base, "--index=nowhere.index")
    assert "no search index" in fails(*base, f"--index={weights / '0.pth'}")
    assert "--topk=17" in fails(*ask, "--topk=17")
    assert "was made with --image_shape=3,32,32" in fails(*ask, "--image_shape=3,64,64")
    assert "was made with --model=" in fails(*ask, "--model=ResNet50")
    assert "found a folder" in fails(*ask, f"--json={tmp_path}")
    assert "no such image" in fails(*ask[:1], ask[2], "--query=nowhere.jpg")
    (tmp_path / "broken.png").write_text("hello")
    assert "broken.png" in fails(*ask[:1], ask[2], "--query=broken.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topk=3"], "--topk is not used (without --query or --query_text)"),
        (["--json=a.json"], "--json is not used (without --query or --query_text)"),
        (["--index_type=ivf"], "--index_type is not used (without --index)"),
        (["--index_options=m=3"], "--index_options is not used (without --index)"),
        (["--index=a.index", "--output_dir=out"], "--output_dir is not used (--index"),
        (["--index=a.index", "--index_type=flat"], "--index_type"),
        (["--index=a.index", "--index_options=m=3"], "exact has no parameter 'm'"),
        (
            ["--index=a.index", "--index_type=ivf", "--index_options=nlist=99"],
            "nlist to be 1 to 16",
        ),
        (["--index=a.index", "--index_type=ivfpq"], "256 images or more, found 16"),
        (["--index=a.index", "--query=b.png"], "--dataset, --data_dir is not used (--query"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_are_not_used_or_do_not_fit_are_refused(
    fails, weights, toy_flags, tmp_path, flags, words
):
    assert words in fails(*toy_flags, f"--pretrained_model={weights / '0.pth'}", *flags)
    assert not (tmp_path / "a.index").exists()
