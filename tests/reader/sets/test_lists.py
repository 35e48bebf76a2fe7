import os
import sys

import numpy as np
import pytest

from metric_learning.reader import ImageError, load_image_set


def names(image_set):
    return [os.path.basename(path) for path in image_set.paths]


def test_sop_labels_follow_the_class_ids(make_sop):
    folder = make_sop()
    train, test = (load_image_set("sop", folder, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.class_names == {0: "1", 1: "2", 2: "3"}
    assert test.labels.tolist() == [4, 4, 5, 5, 6, 6]
    assert test.labels.dtype == np.int64 and test.is_self_retrieval
    assert test.paths[1] == str(folder / "mug_final" / "4 view 1.png")
    assert test.read_image(1).shape == (6, 8, 3)
    assert (train.name, train.split) == ("sop", "train")


def test_sop_super_classes_have_the_names_of_their_folders(make_sop, tmp_path):
    image_set = load_image_set("sop", make_sop(), "test")
    assert image_set.super_classes == {4: "mug", 5: "mug", 6: "mug"}
    (tmp_path / "Ebay_train.txt").write_text(
        "1 1 7 a/1.jpg\n2 2 7 b/2.jpg\n3 3 8 c/3.jpg\n4 4 9 4.jpg\n"
    )
    image_set = load_image_set("sop", tmp_path, "train", train_classes="2-4")
    assert image_set.super_classes == {0: "7", 1: "c", 2: "9"}


def test_sop_class_ids_with_gaps_and_in_any_order(tmp_path):
    (tmp_path / "Ebay_train.txt").write_text(
        "image_id class_id super_class_id path\n1 70 1 a.jpg\n2 9 1 b.jpg\n3 70 1 c.jpg\n"
    )
    image_set = load_image_set("sop", tmp_path, "train")
    assert image_set.labels.tolist() == [1, 0, 1] and image_set.class_names == {0: "9", 1: "70"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header", ["image_id class_id super_class_id path", None])
def test_sop_file_forms(tmp_path, end, mark, header):
    lines = ["1 5 1 a b/c d.jpg", "", "2\t6\t1\té.jpg"]
    text = end.join(lines if header is None else [header, *lines])
    (tmp_path / "Ebay_test.txt").write_bytes(mark + text.encode())
    image_set = load_image_set("sop", tmp_path, "test")
    assert image_set.labels.tolist() == [5, 6]
    assert image_set.paths == [str(tmp_path / "a b" / "c d.jpg"), str(tmp_path / "é.jpg")]


@pytest.mark.parametrize("line", ["7 3 1", "7 x 1 a.jpg", "7 -3 1 a.jpg", "7 3.5 1 a.jpg", "7"])
def test_sop_bad_line_is_named(tmp_path, line):
    path = tmp_path / "Ebay_train.txt"
    path.write_text(f"image_id class_id super_class_id path\n1 1 1 a.jpg\n\n{line}\n")
    with pytest.raises(ValueError) as caught:
        load_image_set("sop", tmp_path, "train")
    assert str(caught.value) == (
        f"{path}:4: expected 'image_id class_id super_class_id path', found '{line}'"
    )


def test_list_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "Ebay_train.txt").write_bytes(b"1 1 1 \xff\xfe\0.jpg\n")
    with pytest.raises(ValueError, match="expected a UTF-8 text file"):
        load_image_set("sop", tmp_path, "train")


def test_sop_of_full_size_loads(tmp_path):
    lines = [f"{i} {i // 5 + 1} 1 mug_final/{i:012d}_{i % 5}.JPG" for i in range(60_000)]
    (tmp_path / "Ebay_train.txt").write_text("\n".join(lines))
    image_set = load_image_set("sop", tmp_path, "train")
    assert len(image_set) == 60_000 and image_set.num_classes == 12_000


def test_list_paths_labels_and_folders(tmp_path, draw):
    draw(tmp_path / "images" / "my picture.png")
    (tmp_path / "train.txt").write_text(
        "images/my picture.png 30\n/absolute/b.png 10\n\nimages/c.png 30\n"
    )
    options = {"train_list": tmp_path / "train.txt", "test_list": str(tmp_path / "train.txt")}
    train = load_image_set("list", None, "train", **options)
    assert train.labels.tolist() == [1, 0, 1] and train.class_names == {0: "10", 1: "30"}
    assert train.paths[:2] == [str(tmp_path / "images" / "my picture.png"), "/absolute/b.png"]
    assert train.read_image(0).shape == (6, 8, 3)
    assert load_image_set("list", None, "test", **options).labels.tolist() == [30, 10, 30]
    elsewhere = load_image_set("list", tmp_path / "images", "train", **options)
    assert elsewhere.paths[2] == str(tmp_path / "images" / "images" / "c.png")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.png", "'path label'"),
        ("a.png -1", "as a label a number from 0 or a name"),
        ("a.png 1.5", "as a label a number from 0 or a name"),
        ("a.png dog", "a number as a label, as in line 1"),
        ("a b", "a number as a label, as in line 1"),
    ],
)
def test_list_bad_line_is_named(tmp_path, line, expected):
    (tmp_path / "l.txt").write_text(f"ok.png 0\n{line}\n")
    with pytest.raises(ValueError) as caught:
        load_image_set("list", None, "test", test_list=tmp_path / "l.txt")
    assert str(caught.value) == f"{tmp_path / 'l.txt'}:2: expected {expected}, found '{line}'"


def test_list_labels_may_be_names_which_are_the_same_classes_in_both_lists(tmp_path, draw):
    for seed, name in enumerate("abcd"):
        draw(tmp_path / f"{name}.png", seed)
    (tmp_path / "train.txt").write_text("a.png zebra\nb.png cat\n")
    (tmp_path / "test.txt").write_text("c.png zebra\nd.png 10\n".replace("10", "ant"))
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    train, test, both = (load_image_set("list", None, s, **lists) for s in ("train", "test", "all"))
    assert train.class_names == {0: "cat", 1: "zebra"} and train.labels.tolist() == [1, 0]
    assert test.class_names == {0: "ant", 2: "zebra"} and test.labels.tolist() == [2, 0]
    assert both.labels.tolist() == [2, 1, 2, 0] and both.class_names[1] == "cat"


def test_list_labels_are_integers_however_they_are_written(tmp_path):
    (tmp_path / "l.txt").write_bytes("\ufeffa.png 3\r\nb.png 3.0\r\nc.png 0.0 \r\n".encode())
    image_set = load_image_set("list", None, "test", test_list=tmp_path / "l.txt")
    assert image_set.labels.tolist() == [3, 3, 0]
    assert image_set.notes == ("read as the same: .0 behind labels (2)",)
    (tmp_path / "l.txt").write_text("a.jpg\nmy picture.png\n")
    with pytest.raises(ValueError, match="l.txt:1: expected 'path label', found 'a.jpg'"):
        load_image_set("list", None, "test", test_list=tmp_path / "l.txt")
    (tmp_path / "l.txt").write_text("my picture.png\n")
    with pytest.raises(ValueError, match="found 'my picture.png': no label behind it"):
        load_image_set("list", None, "test", test_list=tmp_path / "l.txt")


def test_a_list_of_utf16_with_its_mark_is_read(tmp_path):
    (tmp_path / "l.txt").write_bytes("a.png 1\r\n".encode("utf-16"))
    assert load_image_set("list", None, "test", test_list=tmp_path / "l.txt").labels == [1]


def test_class_numbers_may_be_large(tmp_path):
    (tmp_path / "l.txt").write_text(f"a.png {10**17}\nb.png 5\n")
    options = {"train_list": tmp_path / "l.txt", "test_list": tmp_path / "l.txt"}
    assert load_image_set("list", None, "train", **options).labels.tolist() == [1, 0]
    chosen = load_image_set("list", None, "test", test_classes="2", **options)
    assert chosen.labels.tolist() == [10**17]
    with pytest.raises(ValueError, match=f"no class {10**17}; there are classes 1-2"):
        load_image_set("list", None, "test", test_classes=f"1-{10**17}", **options)


def test_every_line_doubled_is_refused_where_images_are_scored_and_the_line_named(make_sop):
    folder = make_sop()
    lines = (folder / "Ebay_test.txt").read_text().splitlines()
    (folder / "Ebay_test.txt").write_text("\n".join([*lines, *lines[1:]]))
    image_set = load_image_set("sop", folder, "test")
    message = r"Ebay_test.txt:8: .*4 view 0.png is listed in .*:2 already \(6 of 12 images of the"
    with pytest.raises(ImageError, match=message):
        image_set.require_whole()


def test_list_needs_its_file(tmp_path):
    with pytest.raises(ValueError, match="needs --test_list=FILE"):
        load_image_set("list", None, "test", train_list=tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="list: no file .*a.txt; expected a file of"):
        load_image_set("list", None, "train", train_list=tmp_path / "a.txt")


@pytest.mark.parametrize("list_folder", [".", "Eval"])
@pytest.mark.parametrize("image_folder", [".", "Img"])
def test_inshop_queries_search_the_gallery(tmp_path, draw, list_folder, image_folder):
    rows = [("b", "id_2", "train"), ("c", "id_9", "query"), ("d", "id_9", "gallery")]
    rows += [("e", "id_1", "gallery"), ("a", "id_5", "train")]
    for name, _, _ in rows:
        draw(tmp_path / image_folder / "img" / f"{name}.png")
    text = "\n".join(f"img/{name}.png  {item}  {status}" for name, item, status in rows)
    (tmp_path / list_folder).mkdir(exist_ok=True)
    path = tmp_path / list_folder / "list_eval_partition.txt"
    path.write_text(f"5\nimage_name item_id evaluation_status\n{text}\n")
    train, test = (load_image_set("inshop", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 1] and train.class_names == {0: "id_2", 1: "id_5"}
    assert train.is_self_retrieval
    assert names(test) == ["c.png", "d.png", "e.png"]
    assert test.labels.tolist() == [3, 3, 0] and test.class_names == {0: "id_1", 3: "id_9"}
    assert test.is_query.tolist() == [True, False, False]
    assert test.is_gallery.tolist() == [False, True, True]
    assert test.read_image(0).shape == (6, 8, 3)


def test_inshop_items_have_their_category_as_super_class(tmp_path, draw):
    rows = [("WOMEN/Dresses/id_2/a", "train"), ("MEN/Pants/id_3/b", "train")]
    rows += [("WOMEN/Dresses/id_9/c", "query"), ("WOMEN/Dresses/id_9/d", "gallery")]
    for name, _ in rows:
        draw(tmp_path / "img" / f"{name}.png")
    text = "\n".join(f"img/{name}.png {name.split('/')[2]} {status}" for name, status in rows)
    (tmp_path / "list_eval_partition.txt").write_text(text + "\n")
    train, test = (load_image_set("inshop", tmp_path, split) for split in ("train", "test"))
    assert train.super_classes == {0: "WOMEN/Dresses", 1: "MEN/Pants"}
    assert test.super_classes == {2: "WOMEN/Dresses"}


def test_inshop_unknown_status_is_named(tmp_path):
    path = tmp_path / "list_eval_partition.txt"
    path.write_text("1\nimage_name item_id evaluation_status\nimg/a.png id_1 val\n")
    with pytest.raises(ValueError, match=r":3: expected 'image_name item_id evaluation_status'"):
        load_image_set("inshop", tmp_path, "test")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
def test_lists_may_hold_names_that_are_not_utf8(tmp_path, draw):
    draw(tmp_path / "a\udcff.png")
    (tmp_path / "list.txt").write_bytes(b"a\xff.png caf\xe9\n")
    lists = {f"{split}_list": str(tmp_path / "list.txt") for split in ("train", "test")}
    found = load_image_set("list", str(tmp_path), "train", **lists).require_whole()
    assert found.class_names == {0: "caf\udce9"} and len(found.read_image(0))

    (tmp_path / "Ebay_train.txt").write_bytes(b"1 1 1 a\xff.png\n")
    assert load_image_set("sop", str(tmp_path), "train").require_whole().labels.tolist() == [0]
    (tmp_path / "list.txt").write_bytes(b"\xff\x00.png 1\n")
    with pytest.raises(ValueError, match="found other bytes"):
        load_image_set("list", str(tmp_path), "train", **lists)
