"""The one walk through folders: what training, preparation and inference find in the same tree."""

import inspect
import os
import sys

import pytest

from metric_learning.data.prepare.scan import scan_tree
from metric_learning.reader import describe_sets, load_image_set
from metric_learning.reader.sets.plain_images import list_plain_images
from metric_learning.reader.sets.walk import is_image_name, walk_images


@pytest.fixture
def tree(tmp_path, draw):
    """Two classes with images of all kinds, below a root in which some things do not fit."""
    root = tmp_path / "photos"
    names = ("cat/0.png", "cat/old/deep/1.png", "dog/2.png", "photo.jpg/3.png", "loose.png")
    for seed, name in enumerate((*names, ".hidden/0.png", "cat/._0.png")):
        draw(root / name, seed)
    for suffix in ("jfif", "JPE", "webp", "Tif"):
        draw(root / "dog" / "a.png").rename(root / "dog" / f"a.{suffix}")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "Thumbs.db").write_text("no image")
    (root / "empty").mkdir()
    draw(tmp_path / "elsewhere" / "4.png", 9)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "circle").symlink_to(root)
    (root / "dog" / "self.png").symlink_to(root / "dog" / "self.png")
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "dog" / "pipe.jpg")
    return root


def test_every_door_finds_the_same_images(tree):
    splits = [load_image_set("folder", tree, split) for split in ("train", "test")]
    trained = {path for image_set in splits for path in image_set.paths}
    rows, left_out = scan_tree(tree, 1, 0)
    scanned = {str(tree / row["path"]) for row in rows}
    plain = set(list_plain_images(tree).paths)
    assert len(trained) == 9 and trained == scanned == plain - {str(tree / "loose.png")}
    names = {name for image_set in splits for name in image_set.class_names.values()}
    assert names == {row["label"] for row in rows} == {"cat", "dog", "linked", "photo.jpg"}
    assert left_out == splits[0].left_out


def test_what_is_left_out_is_counted_in_one_line(tree):
    splits = [load_image_set("folder", tree, split) for split in ("train", "test")]
    assert describe_sets(splits) == [
        "train: folder, 7 images of 2 classes",
        "train: classes 1-2 of 4: cat to dog",
        f"left out of {tree}: 2 files that are no images (.db 1, .txt 1), 2 hidden, "
        "3 links that lead back or nowhere, 1 file that is no regular one, 1 empty class, "
        "1 image in no class folder",
        "test: 2 images of 2 classes",
        "test: classes 3-4 of 4: linked to photo.jpg",
    ]
    assert describe_sets([list_plain_images(tree)])[0] == "images: 10 images"
    assert splits[0].left_out.items["special"] == ["dog/pipe.jpg"]


def test_circles_of_links_end(tmp_path, draw):
    for name in ("a", "b", "c"):
        draw(tmp_path / name / "0.png")
        for other in {"a", "b", "c"} - {name}:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    found = walk_images(tmp_path)
    assert sorted(os.path.realpath(p) for files in found.images.values() for p in files) == sorted(
        [str(tmp_path / name / "0.png") for name in ("a", "b", "c")] * 3
    )


def test_a_tree_may_be_deeper_than_calls_are_allowed(tmp_path, draw):
    image = draw(tmp_path.joinpath("c", *["d"] * 200, "0.png"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = walk_images(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert list(found.images.values()) == [[str(image)]]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
def test_names_may_be_any_bytes(tmp_path, draw):
    os.rename(draw(tmp_path / "c" / "0.png"), os.fsencode(tmp_path / "c") + b"/\xff.png")
    (path,) = walk_images(tmp_path).images["c"]
    assert os.fsencode(path).endswith(b"/\xff.png")


def test_suffixes_in_any_case():
    assert all(map(is_image_name, ("a.jpg", "a.JFIF", "b.Jpe", "c.tar.webp")))
    assert not any(map(is_image_name, ("jpg", "a.txt", "a.jpg.part", "a")))
