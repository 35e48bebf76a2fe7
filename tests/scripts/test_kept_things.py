"""Features, indexes, dumps and results are recognised by what they are of, not by their names."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
import infer
import metric_learning
from metric_learning.engine.embed import embedder
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report.subjects import of_features

MACHINE = ["--use_gpu=False", "--num_workers=0", "--batch_size=16"]


@pytest.fixture
def photos(toy_tree, weights, tmp_path):
    """A copy of the toy tree, to be changed, and flags that embed it."""
    root = shutil.copytree(toy_tree, tmp_path / "photos")
    flags = [*MACHINE, "--dataset=folder", f"--data_dir={root}", f"--pretrained_model={weights}"]
    flags += ["--model=test_resnet", "--image_shape=3,32,32"]
    paths = sorted((root / "test").glob("*/*.png"))
    return SimpleNamespace(root=root, flags=flags, paths=paths, weights=weights)


def make_noise(paths):
    rng = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(path)


def test_features_of_replaced_images_are_computed_again(photos, tmp_path, capsys):
    features = f"--features={tmp_path / 'a.npy'}"
    eval_script.main([*photos.flags, features])
    before = np.load(tmp_path / "a.npy")
    make_noise(photos.paths[2:5])
    os.utime(photos.paths[9])
    capsys.readouterr()
    again = eval_script.main([*photos.flags, features])
    out = capsys.readouterr().out
    assert "3 of 16 images have changed, and their features are computed again; the first " in out
    assert f"class_6/{photos.paths[2].name}" in out and "13 of 16 features are in" in out
    after = np.load(tmp_path / "a.npy")
    assert np.flatnonzero((before != after).any(1)).tolist() == [2, 3, 4]
    fresh = eval_script.main([*photos.flags, f"--features={tmp_path / 'b.npy'}"])
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), after, rtol=1e-4, atol=1e-5)
    assert fresh["recall@1"] == again["recall@1"]
    eval_script.main([*photos.flags, features])
    assert "16 of 16 features are in" in capsys.readouterr().out


def test_features_of_other_images_or_an_earlier_version_are_refused(
    photos, tmp_path, error_of, monkeypatch
):
    ask = [*photos.flags, f"--features={tmp_path / 'a.npy'}"]
    eval_script.main(ask)
    monkeypatch.setattr(embedder, "DECODER", 99)
    assert "features of other decoder (2, not 99)" in error_of(eval_script.main, ask)
    monkeypatch.undo()
    photos.paths[3].unlink()
    error = error_of(eval_script.main, ask)
    assert "features of other images (1 removed, the first class_6/3.png)" in error
    (tmp_path / "a.npy.images").unlink()
    assert "made by an earlier version" in error_of(eval_script.main, ask)
    assert "--verify is not used" in error_of(eval_script.main, [*photos.flags, "--verify=True"])


def test_changed_bytes_of_features_are_found(photos, tmp_path, error_of):
    file = tmp_path / "a.npy"
    ask = [*photos.flags, f"--features={file}"]
    eval_script.main(ask)
    content = bytearray(file.read_bytes())
    content[-400] ^= 1
    file.write_bytes(content)
    error = error_of(eval_script.main, ask)
    assert f"--features={file} is damaged, delete it: bytes of it have changed" in error
    error = error_of(eval_script.main, [*ask, "--split=test", "--verify=True"])
    assert "bytes of it have changed" in error

    content[-400] ^= 1
    file.write_bytes(content)
    make_noise(photos.paths[:1])  # computed again, with another checksum
    for _ in range(2):
        eval_script.main(ask)


def test_verify_reads_all_images_of_features(photos, tmp_path, capsys, monkeypatch):
    from metric_learning.common import fingerprint

    ask = [*photos.flags, f"--features={tmp_path / 'a.npy'}"]
    eval_script.main(ask)
    read = []
    real = fingerprint._hash_file
    monkeypatch.setattr(fingerprint, "_hash_file", lambda path: [read.append(path), real(path)][1])
    eval_script.main(ask)
    assert read == []
    eval_script.main([*ask, "--verify=True"])
    assert len(read) == 16


@pytest.fixture
def index(photos, tmp_path):
    """A search index of the images, and flags that ask it."""
    pytest.importorskip("faiss")
    file = tmp_path / "a.index"
    infer.main([*photos.flags, f"--index={file}"])
    weights = next(flag for flag in photos.flags if flag.startswith("--pretrained_model"))
    ask = [*MACHINE, weights, f"--index={file}", f"--query={photos.paths[0]}", "--topk=2"]
    return SimpleNamespace(file=file, ask=ask)


def test_an_index_answers_to_the_same_tensors_in_another_file(index, weights, tmp_path):
    from safetensors.torch import save_file

    save_file(torch.load(weights), tmp_path / "last.safetensors")
    answers = infer.main([*index.ask, f"--pretrained_model={tmp_path / 'last.safetensors'}"])
    assert answers[0]["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_an_index_of_changed_images_is_refused(index, photos, weights, error_of, capsys):
    make_noise(photos.paths[4:6])
    for words, what in ((["--topk=16"], "of the 16 images found"), (["--verify"], "of its 16 ")):
        error = error_of(infer.main, [*index.ask, *words])
        assert f"2 {what}" in error and "have changed since it was built, the first " in error
        assert "class_7/0.png: " in error
        assert f"build it again with infer.py --index={index.file}" in error
    for path in photos.paths[4:6]:
        path.unlink()
    infer.main([*index.ask, "--verify=True"])
    assert f"2 of 16 images of {index.file} are not here: not compared" in capsys.readouterr().out


def test_a_query_looks_at_the_images_that_it_finds_alone(index, photos, monkeypatch, capsys):
    from metric_learning.common import fingerprint

    make_noise(photos.paths[8:])  # which are far from the query
    looked, times = [], fingerprint._times
    monkeypatch.setattr(fingerprint, "_times", lambda path: [looked.append(path), times(path)][1])
    (answer,) = infer.main([*index.ask, "--topk=1"])
    assert looked == [str(photos.paths[0])] and answer["neighbours"][0]["is_here"] is True


def test_an_answer_whose_file_is_gone_says_so(index, photos, capsys):
    other = photos.paths[-1].parent / "other.png"
    other.write_bytes(photos.paths[0].read_bytes())
    photos.paths[0].unlink()
    (answer,) = infer.main([*index.ask[:-2], f"--query={other}", "--topk=1"])
    (found,) = answer["neighbours"]
    assert found["path"] == str(photos.paths[0]) and found["is_here"] is False
    out = capsys.readouterr().out
    assert out.endswith("  (not here)\n")
    first = f"the first {photos.paths[0]}"
    assert f"1 of the 1 images found are not here: not compared, {first}" in out


def test_who_means_it_searches_an_index_of_changed_images(index, photos, weights, capsys):
    from metric_learning.retrieval.indexes import load_search_index

    make_noise(photos.paths[4:5])
    (answer,) = infer.main([*index.ask, "--on_changed_data=accept", "--topk=16"])
    assert "1 of the 16 images found have changed since it was built" in capsys.readouterr().out
    line = "1 of its 16 images have changed since it was built, the first class_7/0.png"
    assert answer["neighbours"][0]["path"] == str(photos.paths[0])

    model = SimpleNamespace(depends_on=load_search_index(index.file).depends_on)
    with pytest.raises(ValueError, match=line):
        metric_learning.open_index(index.file, model)
    assert metric_learning.open_index(index.file, model, on_changed_data="accept").embedder is model
    assert line in capsys.readouterr().out
    with pytest.raises(ValueError, match="error or accept, found 'yes'"):
        metric_learning.open_index(index.file, model, on_changed_data="yes")


def test_an_index_of_an_earlier_version_is_refused(index, weights, error_of):
    from metric_learning.retrieval.indexes import load_search_index

    made = load_search_index(index.file)
    del made.metadata["depends_on"]
    made.save(index.file)
    error = error_of(infer.main, index.ask)
    assert "was built by an earlier version" in error and "build it again" in error
    with pytest.raises(ValueError, match="build it again"):
        metric_learning.open_index(index.file, None)


def test_a_dump_says_what_it_is_of(photos, tmp_path, error_of):
    folder = tmp_path / "features"
    infer.main([*photos.flags, f"--output_dir={folder}"])
    kept = json.loads((folder / "meta.json").read_text())["depends_on"]
    assert set(kept) == {"weights", "model", "preprocessing", "decoder", "precision", "images"}
    make_noise(photos.paths[:1])
    error = error_of(report.main, [f"--features={folder}", f"--report_dir={tmp_path / 'r'}"])
    assert "images or their classes have changed since" in error


def test_of_several_processes_one_writes_a_dump_or_an_index(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for flag in ("output_dir", "index"):
        assert infer.main([*photos.flags, f"--{flag}={tmp_path / flag}"]) == []
        assert not (tmp_path / flag).exists()
    monkeypatch.setenv("RANK", "0")
    assert infer.main([*photos.flags, f"--output_dir={tmp_path / 'a'}"]) == tmp_path / "a"


def test_a_result_says_what_it_is_of(photos, tmp_path):
    for name in ("a", "b"):
        eval_script.main([*photos.flags, f"--json={tmp_path / f'{name}.json'}"])
    eval_script.main(
        [*photos.flags, f"--json={tmp_path / 'c.json'}", f"--features={tmp_path}/f.npy"]
    )
    kept = [
        json.loads((tmp_path / f"{name}.json").read_text())["evaluated"]["depends_on"]
        for name in "abc"
    ]
    assert kept[0] == kept[1] == kept[2] and kept[0]["images"].startswith("16 images, sha256:")
    make_noise(photos.paths[:1])
    result = tmp_path / "d.json"
    eval_script.main([*photos.flags, f"--json={result}"])
    assert json.loads(result.read_text())["evaluated"]["depends_on"]["images"] != kept[0]["images"]


def test_kept_things_without_broken_images_are_taken_up(photos, tmp_path):
    """An index without its broken images is searched; a dump without them is reported on."""
    for path in photos.paths[:4]:  # all of a class, and so of a folder
        path.write_text("hello")
    index, dump = tmp_path / "a.index", tmp_path / "dump"
    infer.main([*photos.flags, f"--index={index}"])
    ask = [*MACHINE, f"--pretrained_model={photos.weights}", f"--index={index}"]
    [answer] = infer.main([*ask, f"--query={photos.paths[5]}", "--topk=1"])
    assert answer["neighbours"][0]["path"] == str(photos.paths[5])
    infer.main([*photos.flags, f"--output_dir={dump}", "--on_bad_image=skip"])
    assert len(of_features(dump).labels) == 12
    make_noise(photos.paths[:1])
    with pytest.raises(ValueError, match="images or their classes have changed since"):
        of_features(dump)
