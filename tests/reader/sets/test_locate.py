"""Listed images are looked for, all of them and quickly, and found under other writings."""

import os
import unicodedata

import pytest

from metric_learning.reader import load_image_set
from metric_learning.reader.sets.locate import FEW, locate_files


@pytest.mark.parametrize("num_others", [0, FEW + 1])
def test_other_writings_of_a_name_are_found(tmp_path, num_others):
    composed = unicodedata.normalize("NFC", "café.png")
    (tmp_path / "img").mkdir()
    for name in ("a.png", composed, *(f"{i}.png" for i in range(num_others))):
        (tmp_path / "img" / name).touch()
    written = ["img/a.png", "img\\a.png", " img/a.png ", unicodedata.normalize("NFD", composed)]
    written[3] = f"img\\{written[3]}"
    paths = [os.path.join(tmp_path, name) for name in written]
    others = [str(tmp_path / "img" / f"{i}.png") for i in range(num_others)]
    found, missing, unified = locate_files([*paths, *others], str(tmp_path))
    assert found[:3] == [str(tmp_path / "img/a.png")] * 3
    assert found[3] == str(tmp_path / "img" / composed) and missing == []
    assert dict(unified) == {
        "\\ in paths": 2, "spaces around parts of paths": 1, "characters of paths": 1
    }  # fmt: skip


def test_a_name_is_taken_as_it_is_where_there_is_such_a_file(tmp_path):
    for name in (" a.png ", "b\\c.png"):
        (tmp_path / name).touch()
    paths = [str(tmp_path / " a.png "), str(tmp_path / "b\\c.png")]
    assert locate_files(paths, str(tmp_path)) == (paths, [], {})


def test_folders_pipes_and_dead_links_are_no_images(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "c.png")
    for count in (1, FEW):
        paths = [str(tmp_path / f"{name}.png") for name in "abc"] * count
        assert locate_files(paths, str(tmp_path))[1] == [*range(3 * count)]


def test_all_of_a_large_list_is_found(tmp_path):
    folders = [tmp_path / f"{n}" for n in range(10)]
    for folder in folders:
        folder.mkdir()
        for i in range(300):
            (folder / f"{i}.png").touch()
    paths = [str(folder / f"{i}.png") for folder in folders for i in range(300)] * 10
    assert locate_files(paths, str(tmp_path))[1] == []


@pytest.mark.parametrize("name", ["csv", "list"])
def test_paths_of_another_system_are_read_and_said(tmp_path, draw, name):
    for seed, file in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        draw(tmp_path / file, seed)
    rows = [(f"{label}\\{i}.png", label) for label in "ab" for i in range(2)]
    if name == "csv":
        text = "path,label,split\r\n" + "".join(f"{p},{label} ,test\r\n" for p, label in rows)
        (tmp_path / "images.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        image_set = load_image_set("csv", None, "test", csv=tmp_path / "images.csv")
        said = "spaces around labels (4)"
    else:
        (tmp_path / "test.txt").write_text("".join(f"{p} {label}\r\n" for p, label in rows))
        image_set = load_image_set("list", None, "test", test_list=tmp_path / "test.txt")
        said = "\\ in paths (4)"
    assert image_set.require_whole().read_image(3).shape == (6, 8, 3)
    assert list(image_set.class_names.values()) == ["a", "b"]
    assert said in image_set.notes[-1] and "\\ in paths (4)" in image_set.notes[-1]
