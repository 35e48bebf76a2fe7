"""A changed bit in weights or in an index is an error for everyone who reads them."""

import zipfile

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import metric_learning
import train_elem
import train_pair
from metric_learning.engine.embed.class_layer import load_class_layer
from metric_learning.models import build_model, load_weights, read_metadata
from metric_learning.retrieval.indexes import build_index, load_search_index

STEPS = ["--total_iter_num=1", "--test_iter_step=0", "--train_batch_size=8", "--lr=0.001"]
MACHINE = ["--use_gpu=False", "--num_workers=0"]
FILES = ["last.pt", "last.safetensors"]


@pytest.fixture(scope="module")
def run(toy_flags, tmp_path_factory):
    folder = f"--model_save_dir={tmp_path_factory.mktemp('runs')}"
    return train_elem.main([*toy_flags, "--model=test_resnet", *STEPS, folder])


def flip(source, target, place, bit=6):
    data = bytearray(source.read_bytes())
    data[place] ^= 1 << bit
    target.write_bytes(data)
    return target


def place_of_weights(path):
    """A byte of the mean of the first batch norm."""
    mean = build_model("test_resnet", pretrained_model=path).backbone.bn1.running_mean
    return path.read_bytes().index(mean.numpy().tobytes()) + 3


@pytest.mark.parametrize("name", FILES)
def test_everyone_who_reads_weights_checks_them(name, run, toy_tree, toy_flags, tmp_path, error_of):
    path = run / name
    changed = flip(path, tmp_path / name, place_of_weights(path))
    weights = f"--pretrained_model={changed}"
    export = [weights, "--export=safetensors", f"--output={tmp_path / 'new.safetensors'}"]
    for main, flags in (
        (eval_script.main, [weights, *MACHINE]),
        (infer.main, [weights, *MACHINE, f"--images={toy_tree}", f"--index={tmp_path / 'i'}"]),
        (infer.main, export),
        (train_pair.main, [*toy_flags[:2], *MACHINE, weights, *STEPS, "--loss_name=eml"]),
    ):
        error = error_of(main, flags)
        assert "have changed" in error and str(changed) in error
    with pytest.raises(ValueError, match="have changed"):
        metric_learning.load(changed, device="cpu")


def test_a_class_layer_is_checked(run, tmp_path):
    meta, model = read_metadata(run / "last.pt"), build_model("test_resnet")
    weight = load_class_layer(str(run / "last.pt"), meta, model, None).weight.detach().numpy()
    place = (run / "last.pt").read_bytes().index(weight.tobytes()) + weight.nbytes // 2
    changed = flip(run / "last.pt", tmp_path / "last.pt", place)
    with pytest.raises(ValueError, match="have changed"):
        load_class_layer(str(changed), meta, model, None)


@pytest.mark.parametrize("name", FILES)
def test_no_bit_changes_what_is_loaded(name, run, tmp_path):
    """Those of names, sizes, types and facts neither; some bits say nothing, such as a date."""
    whole, rng = run / name, np.random.default_rng(0)
    size = whole.stat().st_size
    expected, facts = build_model("test_resnet"), read_metadata(whole)
    load_weights(expected, whole)
    places = [
        *rng.integers(size, size=20),
        *rng.integers(6000, size=20),
        *(size - 1 - rng.integers(6000, size=20)),
    ]
    num_caught = 0
    for place in places:
        changed = flip(whole, tmp_path / name, place, int(rng.integers(8)))
        model = build_model("test_resnet")
        try:
            load_weights(model, changed)
        except ValueError:
            num_caught += 1
            continue
        assert read_metadata(changed) == facts
        pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert num_caught > len(places) // 2


def test_no_bit_changes_what_an_index_finds(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8)).astype("f")
    build_index(rows, [f"{n}.jpg" for n in range(40)], metadata={"a": 1}).save(tmp_path / "a.index")
    expected = load_search_index(tmp_path / "a.index")
    size = (tmp_path / "a.index").stat().st_size
    for place in rng.integers(size, size=60):
        changed = flip(tmp_path / "a.index", tmp_path / "b.index", place, int(rng.integers(8)))
        try:
            found = load_search_index(changed)
        except ValueError:
            continue
        assert found.paths == expected.paths and found.metadata == expected.metadata
        for one, other in zip(found.search(rows, 3), expected.search(rows, 3), strict=True):
            assert np.array_equal(one, other)


def test_compressed_checkpoints_are_told(run, tmp_path):
    with (
        zipfile.ZipFile(run / "last.pt") as source,
        zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="entries are compressed"):
        load_weights(build_model("test_resnet"), tmp_path / "last.pt")
