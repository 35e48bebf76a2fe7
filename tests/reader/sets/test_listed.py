"""Lists of images: CSV files with boxes, and tar archives."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from metric_learning.common.archives import find_member
from metric_learning.common.fingerprint import take_snapshot
from metric_learning.reader.sets.image_set import ImageError
from metric_learning.reader.sets.plain_images import join_plain_images, list_plain_images


def png(shade, size=(8, 6)):
    content = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(content, "PNG")
    return content.getvalue()


def write_tar(file, contents, **options):
    with tarfile.open(file, "w", **options) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


@pytest.fixture
def shard(tmp_path):
    contents = {"./b.png": png(1), "b.cls": b"3", "b.json": b"{}", "sub/a.PNG": png(2)}
    contents |= {"._c.png": b"?", "../evil.png": png(3), "/evil.png": png(3), "c.cls": b"1"}
    return write_tar(tmp_path / "shard.tar", contents)


def test_the_images_of_an_archive_in_its_order(shard):
    images = list_plain_images(shard)
    assert list(images.paths) == [f"{shard}/b.png", f"{shard}/sub/a.PNG"]
    assert images.notes == (f"left out of {shard}: 4 other files (.cls 2, .json 1, .png 1)",)
    assert [images.read_image(row)[0, 0, 0] for row in range(2)] == [1, 2]
    assert images.read_shape(1) == (6, 8)


def test_names_that_no_encoding_has_and_files_that_come_again(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    file = write_tar(tmp_path / "a.tar", {odd: png(1), "b.png": png(2)})
    with tarfile.open(file, "a") as archive:
        member = tarfile.TarInfo("b.png")
        member.size = len(png(9))
        archive.addfile(member, io.BytesIO(png(9)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    images = list_plain_images(file)
    assert list(images.paths) == [f"{file}/{odd}", f"{file}/b.png"]
    assert [images.read_image(row)[0, 0, 0] for row in range(2)] == [1, 9]


def test_a_folder_of_archives(tmp_path):
    for number in (1, 0):
        write_tar(tmp_path / f"shard-{number}.tar", {f"{number}.png": png(number)})
    (tmp_path / "notes.txt").write_text("read me")
    images = list_plain_images(tmp_path)
    assert list(images.paths) == [f"{tmp_path}/shard-{n}.tar/{n}.png" for n in (0, 1)]


def test_what_lies_in_an_archive_is_known_by_its_content(shard):
    paths = list(list_plain_images(shard).paths)
    before = take_snapshot(paths)
    assert before.states["size"].tolist() == [len(png(1)), len(png(2))]
    write_tar(shard, {"./b.png": png(1), "sub/a.PNG": png(7)})
    after = take_snapshot(paths)
    same = (before.states["digest"] == after.states["digest"]).all(1)
    assert same.tolist() == [True, False]


def test_what_is_not_there_or_no_archive(shard, tmp_path):
    images = join_plain_images([str(shard), str(shard)])
    assert len(images) == 4 and len(images.notes) == 2
    write_tar(shard, {"other.png": png(1)})
    with pytest.raises(ImageError, match="cannot read image .*b.png: no file b.png in"):
        images.read_image(0)
    assert find_member(str(tmp_path / "gone.tar" / "a.png")) is None
    assert find_member("a.png") is None and find_member("/a.png") is None

    whole = write_tar(tmp_path / "whole.tar", {"a.png": bytes(9999)})
    for name, content, said in (
        ("a.tar", b"nothing of the kind" * 99, "is damaged or no tar archive"),
        ("cut.tar", whole.read_bytes()[:5000], "is damaged or no tar archive"),
        ("a.tgz", b"", "not compressed"),
        ("a.tar.gz", b"", "not compressed"),
        ("empty.tar", bytes(10240), "expected images, found none"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            list_plain_images(tmp_path / name)


def test_boxes_of_a_table(tmp_path):
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).save(tmp_path / "a.png")
    table = tmp_path / "boxes.csv"
    table.write_text("path,x_1,y_1,x_2,y_2\na.png,1,2,4,6\na.png,,,,\n")
    images = join_plain_images([str(tmp_path / "a.png"), str(table)])
    assert list(images.paths) == [str(tmp_path / "a.png")] * 3
    assert images.boxes.tolist() == [[0] * 4, [1, 2, 4, 6], [0] * 4]
    whole = images.read_image(0)
    assert np.array_equal(images.read_image(1), whole[2:6, 1:4])
    assert np.array_equal(images.read_image(2), whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\na.png\n", ":1: expected a column path, found name"),
        ("", ":1: expected a column path, found nothing"),
        ("path,x_1,y_1\na.png,1,2\n", ":1: expected all columns x_1,y_1,x_2,y_2 of boxes, found"),
        ("path,x_1,y_1,x_2,y_2\na.png,4,0,2,5\n", ":2: expected a box with x_1 < x_2"),
        ("path,label\na.png\n", ":2: expected 2 cells"),
        ("path,label\na.png,1,2\n", ":2: expected 2 cells"),
        ("path,label\n,1\n", ":2: expected a path, found an empty cell"),
        ('path\n"a.png\n', ":1: expected CSV, found: unexpected end of data"),
        ("path\n", ": expected paths of images, one a line, found none"),
    ],
)
def test_tables_that_are_wrong(tmp_path, text, said):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(ValueError) as raised:
        list_plain_images(table)
    assert str(raised.value).startswith(f"{table}{said}")
