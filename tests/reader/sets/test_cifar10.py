import os
import pickle

import numpy as np
import pytest

from metric_learning.common.array_pickle import load_array_pickle
from metric_learning.reader import load_image_set


def write_batch(path, labels, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (len(labels), 3072), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
    return pixels


@pytest.mark.parametrize("nested", ["", "cifar-10-batches-py"])
def test_cifar10_batches(tmp_path, nested):
    pixels = [
        write_batch(tmp_path / nested / f"data_batch_{i}", [i, 0], seed=i) for i in range(1, 6)
    ]
    write_batch(tmp_path / nested / "test_batch", [9, 2, 9])
    train, test = (load_image_set("cifar10", tmp_path, split) for split in ("train", "test"))
    assert train.paths[3] == "data_batch_2:0001" and len(train) == 10
    assert train.class_names[1] == "automobile" and train.labels[:3].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(
        train.read_image(2)[3, 5], pixels[1][0].reshape(3, 32, 32)[:, 3, 5]
    )
    assert test.labels.tolist() == [9, 2, 9] and test.class_names == {2: "bird", 9: "truck"}
    trucks = load_image_set("cifar10", tmp_path, "test", test_classes="2")
    assert trucks.images.shape == (2, 32, 32, 3) and trucks.paths[1] == "test_batch:0002"


def test_cifar10_batch_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="not a CIFAR-10 batch: it asks for .*mkdir"):
        load_image_set("cifar10", tmp_path, "test")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "not a CIFAR-10 batch"),
        (pickle.dumps({b"data": 1}, protocol=2), "not a CIFAR-10 batch"),
        (
            pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 2]}, protocol=2),
            r"expected \(2, 3072\) uint8",
        ),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2),
            "expected labels 0-9",
        ),
    ],
)
def test_cifar10_broken_batch_is_an_error(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_image_set("cifar10", tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_cifar10_lacking_a_batch_is_an_error(tmp_path):
    write_batch(tmp_path / "data_batch_1", [0])
    with pytest.raises(FileNotFoundError, match="cifar10: no file .*data_batch_2"):
        load_image_set("cifar10", tmp_path, "train")


def test_python_2_pickles_of_arrays_are_read(tmp_path):
    """The original batches were written by Python 2, whose strings become bytes."""
    stream = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02"
        b"cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x01K\x02\x86"
        b"cnumpy\ndtype\nq\x08U\x02u1q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01|q\x0cNNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tq\rb\x89U\x02\x05\x07q\x0etq\x0fbu."
    )
    (tmp_path / "batch").write_bytes(stream)
    batch = load_array_pickle(tmp_path / "batch", encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], np.array([[5, 7]], dtype=np.uint8))
