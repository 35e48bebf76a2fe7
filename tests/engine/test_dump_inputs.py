"""What a dump is made of: tar archives and boxes, beside what test_dump.py takes."""

import tarfile

import numpy as np
import pytest

import infer
from metric_learning import open_features
from metric_learning.common.flags import last_of_each
from metric_learning.engine.search.search import print_answers

MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]
MODEL += ["--use_gpu=False", "--num_workers=0", "--batch_size=3", "--print_features=False"]


@pytest.fixture
def images(toy_tree):
    return sorted((toy_tree / "test").glob("*/*.png"))


def write_tar(file, images):
    with tarfile.open(file, "w") as archive:
        for number, image in enumerate(images):
            archive.add(image, f"{number:05}.png")


def test_an_archive_gives_the_features_of_its_files(images, tmp_path, broken_off, capsys):
    """It goes on after an interruption, and an image that was changed in it is computed again."""
    shard = tmp_path / "shard.tar"
    write_tar(shard, images)
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{image}\n" for image in images))
    expected = infer.main([*MODEL, f"--images={listed}", f"--output_dir={tmp_path / 'files'}"])

    words = [*MODEL, f"--images={shard}", f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 3)
    write_tar(shard, [images[5], *images[1:]])
    found = open_features(infer.main(words))
    assert "2 of 6 parts of the work are there already" in capsys.readouterr().out
    assert found.paths == [f"{shard}/{number:05}.png" for number in range(len(images))]
    features = np.load(expected / "features.npy")
    assert np.array_equal(found.embeddings[1:], features[1:])
    np.testing.assert_allclose(found.embeddings[0], features[5], rtol=1e-4, atol=1e-6)


@pytest.fixture
def boxes(images, tmp_path):
    """A table of two parts of a photo, all of it, and a box beside it."""
    table = tmp_path / "boxes.csv"
    rows = ("0,0,16,32", "16,0,40,32", ",,,", "50,0,60,9")
    table.write_text("path,x_1,y_1,x_2,y_2\n" + "".join(f"{images[0]},{row}\n" for row in rows))
    return table


def test_the_parts_of_a_photo_are_images(boxes, images, tmp_path, error_of):
    words = [*MODEL, f"--images={boxes}", f"--output_dir={tmp_path / 'dump'}"]
    assert "box 50,0,60,9 is outside of its 40 x 32 pixels" in error_of(infer.main, words)
    found = open_features(infer.main([*words, "--on_bad_image=skip"]))
    assert found.paths == [str(images[0])] * 3
    assert found.boxes.tolist() == [[0, 0, 16, 32], [16, 0, 40, 32], [0, 0, 0, 0]]
    assert list(found.meta["broken"]) == [f"{images[0]} (50,0,60,9)"]
    whole = infer.main([*MODEL, f"--images={images[0]}", f"--output_dir={tmp_path / 'whole'}"])
    np.testing.assert_allclose(
        found.embeddings[2], np.load(whole / "features.npy")[0], rtol=1e-4, atol=1e-6
    )
    assert np.abs(found.embeddings[0] - found.embeddings[1]).max() > 1e-3


def test_other_boxes_are_other_work(boxes, tmp_path, broken_off, error_of):
    listed = boxes.read_text().replace("50,0,60,9", "0,0,9,9")
    boxes.write_text(listed)
    words = last_of_each([*MODEL, f"--images={boxes}", f"--output_dir={tmp_path / 'dump'}"])
    broken_off([*words, "--batch_size=1"], 2)
    boxes.write_text(listed.replace("0,0,9,9", "0,0,9,8"))
    assert "its list of images" in error_of(infer.main, [*words, "--batch_size=1"])


def test_an_index_answers_with_boxes(boxes, images, tmp_path, capsys):
    pytest.importorskip("faiss")
    file = tmp_path / "parts.index"
    infer.main([*MODEL[:-1], f"--images={boxes}", f"--index={file}"])
    (answer,) = infer.main(
        [*MODEL[:1], "--use_gpu=False", f"--index={file}", f"--query={images[0]}", "--topk=3"]
    )
    assert [found["box"] for found in answer["neighbours"]][0] == [0, 0, 0, 0]
    assert {tuple(found["box"]) for found in answer["neighbours"]} == {
        *((0, 0, 16, 32), (16, 0, 40, 32), (0, 0, 0, 0))
    }
    capsys.readouterr()
    print_answers([answer])
    assert f"{images[0]} (16,0,40,32)" in capsys.readouterr().out
