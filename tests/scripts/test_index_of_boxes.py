"""Indexes of boxes, parts of photos: built, asked, shown and changed."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import infer
from metric_learning.reader.sets.image_set import decode_file
from metric_learning.reader.sets.plain_images import list_plain_images
from metric_learning.retrieval.indexes import load_search_index

pytest.importorskip("faiss")

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--model=test_resnet", "--image_shape=3,32,32"]
LEFT, RIGHT, TOP = (0, 0, 20, 32), (20, 0, 40, 32), (0, 0, 40, 16)


def write_table(file, rows, columns="path"):
    """Write a table of rows: path, box, and what else the columns name."""
    lines = [f"{columns},x_1,y_1,x_2,y_2"]
    for path, box, *more in rows:
        lines.append(",".join(map(str, [path, *more, *(box or ["", "", "", ""])])))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def photos(toy_tree):
    return sorted((toy_tree / "test").rglob("*.png"))[:6]


@pytest.fixture
def table(photos, tmp_path):
    """Two boxes of each of four photos."""
    rows = [(photo, box) for photo in photos[:4] for box in (LEFT, RIGHT)]
    return write_table(tmp_path / "boxes.csv", rows)


@pytest.fixture
def file(table, weights, tmp_path):
    found = tmp_path / "boxes.index"
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--images={table}"]
    infer.main([*flags, f"--index={found}"])
    return found


@pytest.fixture
def change(file, change_index):
    """Change the index by infer.py and return what is in it: (path, box) per row."""

    def run(*flags):
        change_index(file, *flags)
        index = load_search_index(file)
        assert len(index) == index.vectors.ntotal == len(index.snapshot) == len(index.boxes)
        return [(path, tuple(box)) for path, box in zip(index.paths, index.boxes, strict=True)]

    return run


@pytest.fixture
def ask(file, weights):
    return [*MACHINE, f"--pretrained_model={weights}", f"--index={file}"]


def test_boxes_are_added_as_an_index_of_all_of_them_has_them(
    change, file, photos, table, weights, tmp_path
):
    more = write_table(tmp_path / "more.csv", [(photos[0], TOP), (photos[4], RIGHT)])
    found = change(f"--add={more}", f"--add={photos[5]}")
    assert found[8:] == [(str(photos[0]), TOP), (str(photos[4]), RIGHT), (str(photos[5]), (0,) * 4)]

    whole = tmp_path / "whole.index"
    images = [f"--images={path}" for path in (table, more, photos[5])]
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", *images]
    infer.main([*flags, f"--index={whole}"])
    ours, expected = load_search_index(file), load_search_index(whole)
    assert ours.paths == expected.paths and (ours.boxes == expected.boxes).all()
    assert ours.snapshot.labels == expected.snapshot.labels
    rows = [index.vectors.reconstruct_n(0, 11) for index in (ours, expected)]
    np.testing.assert_allclose(*rows, atol=1e-6)
    assert change(f"--add={more}", f"--add={table}") == found  # all of them are there


def test_a_whole_photo_among_boxes_is_removed_alone(change, photos):
    before = change(f"--add={photos[0]}")
    assert before[-1] == (str(photos[0]), (0, 0, 0, 0))
    assert change(f"--remove={photos[0]} (0,0,0,0)") == before[:-1]


def test_one_box_or_a_whole_photo_is_removed(change, photos):
    found = change(f"--remove={photos[0]} (20,0,40,32)", f"--remove={photos[2]}")
    kept = [(str(photos[0]), LEFT)]
    kept += [(str(photo), box) for photo in (photos[1], photos[3]) for box in (LEFT, RIGHT)]
    assert found == kept


def test_what_is_removed_is_not_added_by_the_same_command(change, photos, table):
    found = change(f"--remove={photos[0]} (20,0,40,32)", f"--remove={photos[2]}", f"--add={table}")
    assert len(found) == 5 and (str(photos[0]), RIGHT) not in found


def test_a_box_that_is_there_twice_is_embedded_again_once(weights, photos, tmp_path):
    own, index = tmp_path / "a.png", tmp_path / "own.index"
    own.write_bytes(photos[0].read_bytes())
    rows = [(own, LEFT), (photos[1], LEFT), (own, LEFT), (own, TOP)]
    table = write_table(tmp_path / "own.csv", rows)
    flags = [*MACHINE, f"--pretrained_model={weights}", f"--index={index}"]
    infer.main([*flags, *MODEL, f"--images={table}"])
    assert len(load_search_index(index)) == 4
    own.write_bytes(photos[5].read_bytes())
    infer.main([*flags[:1], *flags[2:], f"--add={table}"])
    found = load_search_index(index)
    assert found.paths == [str(photos[1]), str(own), str(own)]
    assert found.boxes.tolist() == [[*LEFT], [*LEFT], [*TOP]]


def test_a_photo_that_changed_is_embedded_again_with_all_its_boxes(
    weights, photos, tmp_path, capsys
):
    own = [tmp_path / f"{n}.png" for n in range(2)]
    for path, photo in zip(own, photos, strict=False):
        path.write_bytes(photo.read_bytes())
    table = write_table(tmp_path / "own.csv", [(path, box) for path in own for box in (LEFT, TOP)])
    index = tmp_path / "own.index"
    flags = [*MACHINE, f"--pretrained_model={weights}", f"--index={index}"]
    infer.main([*flags, *MODEL, f"--images={table}"])
    before = np.asarray(load_search_index(index).vectors.reconstruct_n(0, 4))
    own[0].write_bytes(photos[5].read_bytes())
    infer.main([*flags[:1], *flags[2:], f"--add={table}"])
    assert "2 images embedded, 0 of them new" in capsys.readouterr().out
    after = load_search_index(index)
    assert after.paths == [*[str(own[1])] * 2, *[str(own[0])] * 2]
    rows = np.asarray(after.vectors.reconstruct_n(0, 4))
    np.testing.assert_allclose(rows[:2], before[2:], atol=1e-6)
    assert (np.abs(rows[2:] - before[:2]).max(1) > 1e-3).all()


def test_boxes_ask_and_answers_tell_theirs(ask, table, photos, tmp_path, capsys):
    kept = tmp_path / "answers.json"
    answers = infer.main([*ask, f"--query={table}", "--topk=2", f"--json={kept}"])
    assert json.loads(kept.read_text())["queries"] == answers
    assert [(a["path"], tuple(a["box"])) for a in answers] == [
        (str(photo), box) for photo in photos[:4] for box in (LEFT, RIGHT)
    ]
    for answer in answers:
        best = answer["neighbours"][0]
        assert (best["path"], best["box"]) == (answer["path"], answer["box"])
        assert best["cosine"] == pytest.approx(1, abs=1e-5)
    out = capsys.readouterr().out
    assert f"query {photos[0]} (0,0,20,32)\n   1   1.0000  {photos[0]} (0,0,20,32)\n" in out


def test_a_page_shows_boxes_alone(ask, table, photos, tmp_path):
    page = tmp_path / "answers.html"
    query = write_table(tmp_path / "query.csv", [(photos[0], LEFT)])
    (answer,) = infer.main([*ask, f"--query={query}", "--topk=3", f"--html={page}"])
    text = page.read_text("utf-8")
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.float64)
        for data in re.findall(r"base64,([^\"]+)", text)
    ]
    assert len(pictures) == 4 and "(0,0,20,32)" in text
    shown = [(photos[0], LEFT), *[(n["path"], n["box"]) for n in answer["neighbours"]]]
    for picture, (path, box) in zip(pictures, shown, strict=True):
        expected = decode_file(str(path), box=box).astype(np.float64)
        assert picture.shape == expected.shape == (32, 20, 3)
        assert abs(picture - expected).mean() < 25  # a JPEG of noise


def test_tables_name_classes(photos, weights, tmp_path, capsys):
    """In an index with classes a table's labels count, and where it has none, the folders."""
    file, index = tmp_path / "classes.csv", tmp_path / "classes.index"
    rows = [(photos[0], LEFT, "cat"), (photos[0], RIGHT, "dog"), (photos[1], LEFT, "dog")]
    write_table(file, rows, "path,label")
    flags = [*MACHINE, f"--pretrained_model={weights}", f"--index={index}"]
    infer.main([*flags, *MODEL, "--dataset=csv", f"--csv={file}", "--data_dir=/", "--split=all"])
    more = [(photos[2], TOP, "cat"), (photos[2], LEFT, "cow"), (photos[2], RIGHT, "")]
    write_table(tmp_path / "more.csv", more, "path,label")
    infer.main([*MACHINE[:1], *flags[2:], f"--add={tmp_path / 'more.csv'}"])
    found = load_search_index(index)
    names = [found.class_name(row) for row in range(6)]
    assert names == ["cat", "dog", "dog", "cat", "cow", photos[2].parent.name]
    assert found.snapshot.labels[0] == "cat (0,0,20,32)"
    assert found.snapshot.labels[3] == "cat (0,0,40,16)"
    assert "2 new classes, the first cow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{photo},1,2,3", "more.csv:2: expected 5 cells"),
        ("{photo},a,2,3,4", "more.csv:2: expected a box x_1,y_1,x_2,y_2 in whole pixels"),
        ("{photo},9,2,3,4", "more.csv:2: expected a box with x_1 < x_2"),
        (",1,2,3,4", "more.csv:2: expected a path, found an empty cell"),
    ],
)
def test_wrong_tables_are_one_line_and_change_nothing(
    row, words, file, photos, weights, tmp_path, error_of
):
    before = file.read_bytes()
    more = tmp_path / "more.csv"
    more.write_text("path,x_1,y_1,x_2,y_2\n" + row.format(photo=photos[5]) + "\n")
    flags = [MACHINE[0], f"--pretrained_model={weights}", f"--index={file}", f"--add={more}"]
    assert words in error_of(infer.main, flags)
    assert file.read_bytes() == before


def test_what_is_not_there_cannot_be_removed(file, photos, error_of):
    before = file.read_bytes()
    for which, words in (
        (f"{photos[0]} (1,2,3,4)", "holds no such image or folder"),
        (f"{photos[5]} (0,0,20,32)", "holds no such image or folder"),
        (f"{photos[0]} (9,2,3,4)", "expected a box with x_1 < x_2"),
        (f"{photos[0].parent.parent}", "would leave no image"),
    ):
        assert words in error_of(infer.main, [MACHINE[0], f"--index={file}", f"--remove={which}"])
    assert file.read_bytes() == before


def test_a_box_outside_of_its_photo_is_left_out_and_told(change, file, photos, tmp_path):
    more = write_table(tmp_path / "more.csv", [(photos[4], (50, 0, 60, 9)), (photos[4], LEFT)])
    assert change(f"--add={more}")[8:] == [(str(photos[4]), LEFT)]
    broken = load_search_index(file).metadata["broken"]
    assert [*broken] == [f"{photos[4]} (50,0,60,9)"]
    assert "outside of its 40 x 32 pixels" in broken[f"{photos[4]} (50,0,60,9)"]


def test_labels_of_no_class_are_refused(photos, weights, file, tmp_path, error_of):
    table = write_table(tmp_path / "more.csv", [(photos[4], LEFT, "-1")], "path,label")
    assert len(list_plain_images(table)) == 1
    flags = [MACHINE[0], f"--pretrained_model={weights}", f"--index={file}", f"--add={table}"]
    assert "more.csv:2: expected a class as label, found -1" in error_of(infer.main, flags)
