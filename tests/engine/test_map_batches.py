"""Embedder as engines of clusters call it: built of a file, dicts of arrays in and out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
import metric_learning

MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    infer.main([*MODEL, "--export=safetensors", f"--output={file}"])
    return str(file)


@pytest.fixture(scope="module")
def paths(toy_tree):
    return sorted(map(str, (toy_tree / "test").glob("*/*.png")))[:5]


def test_a_batch_of_columns_comes_back_with_embeddings(weights, paths):
    model = metric_learning.Embedder(*(weights,), device="cpu")
    assert type(metric_learning.load(weights, device="cpu")) is metric_learning.Embedder
    expected = model(paths)
    assert expected.shape == (5, 96) and np.ptp(expected, axis=0).max() > 0
    contents = np.empty(5, object)
    contents[:] = [Path(path).read_bytes() for path in paths]
    columns = {
        "path": np.array(paths, object),
        "image": np.stack([np.asarray(Image.open(path)) for path in paths]),
        "bytes": contents,
    }
    for column, values in columns.items():
        batch = {column: values, "number": np.arange(5)}
        found = model(batch)
        assert [*found] == [column, "number", "embedding"] and [*batch] == [column, "number"]
        assert found[column] is values and np.array_equal(found["number"], np.arange(5))
        assert found["embedding"].dtype == np.float32
        assert np.array_equal(found["embedding"], expected)
    assert model({"path": np.empty(0, object)})["embedding"].shape == (0, 96)


def test_a_call_does_not_call_itself(weights, paths):
    """Ray Data puts a class below this one whose calls wait for each other."""

    class OneAtATime(metric_learning.Embedder):
        is_busy = False

        def __call__(self, images):
            assert not self.is_busy
            self.is_busy = True
            found = super().__call__(images)
            self.is_busy = False
            return found

    model = OneAtATime(weights, device="cpu")
    assert model({"path": paths})["embedding"].shape == model(paths).shape == (5, 96)


def test_what_is_no_batch_is_said(weights, tmp_path):
    model = metric_learning.Embedder(weights, device="cpu")
    with pytest.raises(ValueError, match="expected a column image, bytes or path, found .'number'"):
        model({"number": np.arange(5)})
    with pytest.raises(ValueError, match="cannot read image image 0"):
        model([b"no image"])
    with pytest.raises(ValueError, match="image 0: expected a path, .* found uint8 \\(4, 4, 4\\)"):
        model({"image": np.zeros((2, 4, 4, 4), np.uint8)})
    with pytest.raises(OSError):
        metric_learning.Embedder(tmp_path / "gone.pt")


@pytest.mark.slow
def test_ray_data_takes_the_class_as_it_is(weights, paths):
    """It loads the model once an actor; paths and pixels give the same."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    expected = metric_learning.load(weights, device="cpu", batch_size=2)(paths)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tables = (
            ray.data.from_items([{"path": path} for path in paths]),
            ray.data.read_images(paths, include_paths=True, mode="RGB"),
            ray.data.read_binary_files(paths, include_paths=True),
        )
        for table in tables:
            found = table.map_batches(
                metric_learning.Embedder,
                fn_constructor_args=(weights,),
                fn_constructor_kwargs={"device": "cpu"},
                concurrency=1,
                batch_size=2,
                batch_format="numpy",
            )
            rows = {row["path"]: row["embedding"] for row in found.take_all()}
            assert sorted(rows) == paths
            for path, row in zip(paths, expected, strict=True):
                np.testing.assert_allclose(rows[path], row, rtol=1e-4, atol=1e-5)
    finally:
        ray.shutdown()
