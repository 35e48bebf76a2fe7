"""Where commands write: what is not theirs stays, what is theirs is replaced as a whole."""

import os

import pytest

from metric_learning.common.atomic import write_csv, write_json, write_text
from metric_learning.common.names import from_line, to_line
from metric_learning.common.outputs import (
    Kind,
    csv_kind,
    json_kind,
    prepare_folder,
    prepare_output,
    refuse_same,
    replaced_folder,
)

RESULT = json_kind("a result", "evaluated")
PHOTO = b"\xff\xd8\xff" + bytes(100)
DUMP = Kind("a dump", lambda folder: next((n for n in os.listdir(folder) if n != "a.txt"), None))


@pytest.mark.parametrize(
    "content",
    [PHOTO, b"{", b"[1]", b'{"a": 1}', b"a,b\n", b"[" * 9999, b'{"evaluated":' + b"[" * 9999],
)
def test_what_is_not_ours_is_refused_and_stays(content, tmp_path):
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"--json={file} exists and is not a result"):
        prepare_output("json", file, RESULT)
    assert file.read_bytes() == content and os.listdir(tmp_path) == ["mine"]


def test_what_is_ours_or_empty_may_be_replaced(tmp_path):
    write_json(tmp_path / "ours.json", {"evaluated": {}})
    (tmp_path / "empty").touch()
    write_csv(tmp_path / "ours.csv", ["path", "label", "hash"], [])
    for name, kind in (("ours.json", RESULT), ("empty", RESULT), ("new/file", RESULT)):
        assert prepare_output("json", tmp_path / name, kind) == tmp_path / name
    prepare_output("output", tmp_path / "ours.csv", csv_kind("a list", ["path", "hash"]))
    for kind in (csv_kind("a list", ["fold"]), csv_kind("a list", ["path"], ["hash"]), RESULT):
        with pytest.raises(ValueError, match="move it away"):
            prepare_output("output", tmp_path / "ours.csv", kind)


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for place, words in (
        (tmp_path / "loop", "cannot be written: Too many levels of symbolic links"),
        (tmp_path, "expected a file to write, found a folder"),
        (tmp_path / "fifo", "found a device or pipe"),
        ("/dev/null", "found a device or pipe"),
        ("/proc/nowhere/file", "cannot be written"),
        (tmp_path / "file" / "inside", "cannot be written"),
        (tmp_path / ("long" * 99), "cannot be written"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_output("json", place, RESULT)
    with pytest.raises(ValueError, match="--output_dir=.*Too many levels"):
        prepare_folder("output_dir", tmp_path / "loop", DUMP)
    for place in (tmp_path / "file", "/proc/nowhere"):
        with pytest.raises(ValueError, match="--output_dir=.* (cannot be written|found a file)"):
            prepare_folder("output_dir", place, DUMP)
    with pytest.raises(ValueError, match="--json and --class_table name one file"):
        refuse_same(json=f"{tmp_path}/a", features=None, class_table=f"{tmp_path}/b/../a")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("is_here", [False, True])
def test_a_folder_appears_as_a_whole(is_here, tmp_path, monkeypatch):
    """The working directory cannot be moved: its files are."""
    folder = tmp_path / "a" / "dump"
    assert prepare_folder("output_dir", folder, DUMP) == folder
    if is_here:
        folder.mkdir()
        monkeypatch.chdir(folder)
    for text in ("one", "two"):
        with replaced_folder(folder) as new:
            (new / "a.txt").write_text(text)
            assert not is_here or text == "one" or (folder / "a.txt").read_text() == "one"
        assert (folder / "a.txt").read_text() == text
        assert os.listdir(folder) == ["a.txt"] and os.listdir(tmp_path / "a") == ["dump"]

    with pytest.raises(KeyError), replaced_folder(folder) as new:
        (new / "a.txt").write_text("three")
        raise KeyError
    assert (folder / "a.txt").read_text() == "two" and os.listdir(folder) == ["a.txt"]
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes.txt, which is not of a dump"):
        prepare_folder("output_dir", folder, DUMP)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "é\udcff", "a\nb", "c\\d", '"x"', "a\u2028b", "\x1b[m", ""]
)
def test_a_name_is_one_line_that_reads_back(name):
    line = to_line(name)
    assert from_line(line) == name
    assert line.isprintable() or "\udcff" in line
    assert from_line('"no json') == '"no json' and from_line("c\\d") == "c\\d"  # of older files


def test_names_that_are_no_text_are_written_as_their_bytes(tmp_path):
    write_text(tmp_path / "a", "é\udcff\n")
    assert (tmp_path / "a").read_bytes() == "é".encode() + b"\xff\n"
    write_text(tmp_path / "b", "\ud800")
    assert (tmp_path / "b").read_bytes() == b"\\ud800"
    write_csv(tmp_path / "c", ["class"], [{"class": "a\nb\udcff"}])
    assert (tmp_path / "c").read_bytes() == b'class\n"a\nb\xff"\n'
