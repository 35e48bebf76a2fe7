import gzip
import hashlib
import io
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from metric_learning.data import download
from metric_learning.reader import DATASETS, load_image_set

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "Set/Ebay_train.txt": b"image_id class_id super_class_id path\n1 1 1 a.jpg\n",
    "Set/mug_final/a.jpg": b"picture",
    "Set/empty/": None,
}


def make_zip(path, files=FILES, links=()):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data or b"")
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
    return path


def make_tar(path, files=FILES, kinds=()):
    with tarfile.open(path, "w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            file.addfile(info, io.BytesIO(data or b""))
        for name, kind in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../outside"
            file.addfile(info)
    return path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def offer(monkeypatch):
    """Let data set "sop" come from this archive."""

    def set_source(url, filename="set.zip", checksum=None, marker="Ebay_train.txt", most=10**7):
        urls = url if isinstance(url, tuple) else (url,)
        source = download.Source("SOP", marker, urls, filename, checksum, most)
        monkeypatch.setitem(download.SOURCES, "sop", source)

    return set_source


def run(root, capsys, name="sop"):
    try:
        status = download.main([name, f"--dir={root}"])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def leftovers(root):
    return [p.name for p in root.iterdir() if p.name.startswith(".unpack") or p.suffix == ".part"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_fetches_verifies_unpacks_and_skips(tmp_path, capsys, offer, make):
    archive = make(tmp_path / "archive")
    offer(archive.as_uri(), "set.archive", md5(archive))
    root = tmp_path / "new" / "data"
    status, out, _ = run(root, capsys)
    assert status == 0 and "is ready" in out
    assert (root / "SOP" / "mug_final" / "a.jpg").read_bytes() == b"picture"
    assert (root / "SOP" / "empty").is_dir() and leftovers(root) == []
    assert len(load_image_set("sop", root / "SOP", "train")) == 1
    archive.unlink()
    (root / "set.archive").unlink()
    status, out, _ = run(root, capsys)
    assert status == 0 and "already there" in out


def test_archive_on_disk_is_used_without_network(tmp_path, capsys, offer):
    offer("file:///nonexistent", "set.zip", md5(make_zip(tmp_path / "set.zip")))
    assert run(tmp_path, capsys)[0] == 0
    assert (tmp_path / "SOP" / "Ebay_train.txt").is_file()


def test_sha256_is_printed_where_no_checksum_is_published(tmp_path, capsys, offer):
    archive = make_zip(tmp_path / "archive")
    offer(archive.as_uri())
    _, out, _ = run(tmp_path, capsys)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert f"no published checksum: the file's sha256 is {digest}" in out


def test_wrong_checksum_is_refused(tmp_path, capsys, offer):
    offer(make_zip(tmp_path / "archive").as_uri(), checksum="0" * 32)
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "expected md5 000" in err and "delete it and run again" in err
    assert not (tmp_path / "SOP").exists() and not (tmp_path / "set.zip").exists()


def test_second_address_is_tried(tmp_path, capsys, offer):
    archive = make_zip(tmp_path / "archive")
    offer(((tmp_path / "gone").as_uri(), archive.as_uri()))
    assert run(tmp_path, capsys)[0] == 0


def test_no_address_answers(tmp_path, capsys, offer):
    offer((tmp_path / "gone").as_uri())
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and err.startswith("error: cannot download file:///")
    assert "run again to resume" in err and err.count("\n") == 1


def test_ftp_does_not_overwrite_what_came(tmp_path, capsys, offer):
    (tmp_path / "set.zip.part").write_bytes(b"half")
    offer(((tmp_path / "gone").as_uri(), "ftp://localhost/set.zip"))
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "cannot resume" in err
    assert (tmp_path / "set.zip.part").read_bytes() == b"half"


@pytest.fixture
def serve():
    """Serve bytes over HTTP on this machine: with ranges, optionally breaking off early."""
    servers = []

    def start(data, ranges=True, cut=None):
        class Handler(BaseHTTPRequestHandler):
            asked = []

            def do_GET(self):
                wanted = self.headers.get("Range")
                self.asked.append(wanted)
                start = int(wanted[6:-1]) if wanted and ranges else 0
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.end_headers()
                    return
                self.send_response(206 if wanted and ranges else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:cut])

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/set.zip", Handler.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("have", [0, 10, -1])
def test_interrupted_download_goes_on(tmp_path, capsys, offer, serve, ranges, have):
    archive = make_zip(tmp_path / "archive")
    data = archive.read_bytes()
    have = len(data) if have < 0 else have
    (tmp_path / "set.zip.part").write_bytes(data[:have])
    url, asked = serve(data, ranges)
    offer(url, checksum=md5(archive))
    assert run(tmp_path, capsys)[0] == 0
    assert (tmp_path / "set.zip").read_bytes() == data
    assert asked == [f"bytes={have}-" if have else None]


def test_part_longer_than_the_file_is_fetched_anew(tmp_path, capsys, offer, serve):
    archive = make_zip(tmp_path / "archive")
    (tmp_path / "set.zip.part").write_bytes(archive.read_bytes() + b"more")
    url, _ = serve(archive.read_bytes())
    offer(url, checksum=md5(archive))
    assert run(tmp_path, capsys)[0] == 0


def test_connection_that_breaks_keeps_what_came(tmp_path, capsys, offer, serve):
    archive = make_zip(tmp_path / "archive")
    data = archive.read_bytes()
    offer(serve(data, cut=20)[0], checksum=md5(archive))
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "run again to resume" in err and err.count("\n") == 1
    assert (tmp_path / "set.zip.part").read_bytes() == data[:20]
    offer(serve(data)[0], checksum=md5(archive))
    assert run(tmp_path, capsys)[0] == 0


MALICIOUS = {
    "zip parent": lambda path: make_zip(path, FILES | {"../outside.txt": b"x"}),
    "zip nested parent": lambda path: make_zip(path, FILES | {"Set/../../outside.txt": b"x"}),
    "zip absolute": lambda path: make_zip(path, FILES | {"/tmp/outside.txt": b"x"}),
    "zip backslash": lambda path: make_zip(path, FILES | {"..\\outside.txt": b"x"}),
    "zip drive": lambda path: make_zip(path, FILES | {"C:outside.txt": b"x"}),
    "zip link": lambda path: make_zip(path, links=["Set/outside.txt"]),
    "tar parent": lambda path: make_tar(path, FILES | {"../outside.txt": b"x"}),
    "tar absolute": lambda path: make_tar(path, FILES | {"/tmp/outside.txt": b"x"}),
    "tar symbolic link": lambda path: make_tar(path, kinds=[("Set/l", tarfile.SYMTYPE)]),
    "tar hard link": lambda path: make_tar(path, kinds=[("Set/l", tarfile.LNKTYPE)]),
    "tar device": lambda path: make_tar(path, kinds=[("Set/l", tarfile.CHRTYPE)]),
    "tar pipe": lambda path: make_tar(path, kinds=[("Set/l", tarfile.FIFOTYPE)]),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_archive_is_refused(tmp_path, capsys, offer, name):
    root = tmp_path / "a" / "b" / "data"
    root.mkdir(parents=True)
    offer(MALICIOUS[name](tmp_path / "archive").as_uri())
    status, _, err = run(root, capsys)
    assert status == 2 and "refused: " in err and err.count("\n") == 1
    assert not (root / "SOP").exists() and leftovers(root) == []
    assert not list(tmp_path.rglob("outside.txt")) and not os.path.exists("/tmp/outside.txt")


def test_what_may_be_changed_on_its_way_is_refused(tmp_path, capsys, offer, serve):
    archive = make_zip(tmp_path / "archive")
    url, asked = serve(archive.read_bytes())
    offer(url)
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "over plain http" in err and err.count("\n") == 1 and asked == []
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(SystemExit):
        download.main(["sop", f"--dir={tmp_path}", f"--sha256={'0' * 64}"])
    assert f"found {digest}" in capsys.readouterr().err
    assert download.main(["sop", f"--dir={tmp_path}", f"--sha256={digest.upper()}"]) == 0
    other = tmp_path / "other"
    assert download.main(["sop", f"--dir={other}", "--unverified=True"]) == 0
    assert f"sha256 is {digest}" in capsys.readouterr().out


def make_sparse(path):
    """A tar of 10 kB that holds a file of 1 TB, as GNU tar writes holes."""
    info = tarfile.TarInfo("Set/Ebay_train.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:398], head[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    head[483:495] = (0x80 << 88 | 2**40).to_bytes(12, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(bytes(head) + bytes(512) + bytes(1024))
    with tarfile.open(path) as file:
        assert file.getmembers()[0].size == 2**40
    return path


def make_damaged_xz(path):
    make_tar(path)
    data = bytearray(lzma.compress(gzip.decompress(path.read_bytes())))
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    return path


def make_nameless(path):
    make_zip(path)
    info = zipfile.ZipInfo("x")
    info.filename = ""
    with zipfile.ZipFile(path, "a") as file, file.open(info, "w") as member:
        member.write(b"x")
    return path


WRONG = {
    "sparse": (make_sparse, "refused: "),
    "damaged xz": (make_damaged_xz, "broken archive: "),
    "no name in a zip": (make_nameless, "refused: "),
    "no name": (lambda path: make_tar(path, FILES | {"": b"x"}), "refused: "),
    "a dot": (lambda path: make_tar(path, FILES | {".": b"x"}), "refused: "),
    "too large": (lambda path: make_tar(path, FILES | {"Set/b": bytes(10**6)}), "holds more than"),
    "a file as folder": (lambda path: make_zip(path, FILES | {"Set/mug_final": b"x"}), "directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_archives_that_would_harm_are_one_line(tmp_path, capsys, offer, name):
    make, words = WRONG[name]
    offer(make(tmp_path / "archive").as_uri(), most=10**5)
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and err.count("\n") == 1 and words.lower() in err.lower()
    assert not (tmp_path / "SOP").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize("where", ["download", "unpack"])
def test_a_disk_without_room_is_found_before_it_is_full(
    tmp_path, capsys, offer, monkeypatch, where
):
    archive = make_zip(tmp_path / ("archive" if where == "download" else "set.zip"))
    offer(archive.as_uri(), checksum=md5(archive))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "free: make room" in err and err.count("\n") == 1
    assert not (tmp_path / "SOP").exists()


def test_a_file_that_is_larger_than_expected_is_not_fetched(tmp_path, capsys, offer, serve):
    archive = make_zip(tmp_path / "archive")
    offer(serve(archive.read_bytes())[0], checksum=md5(archive), most=100)
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "expected at most 100" in err and err.count("\n") == 1


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_broken_archive_is_an_error(tmp_path, capsys, offer, make, kept):
    data = make(tmp_path / "archive").read_bytes()
    (tmp_path / "archive").write_bytes(data[: int(len(data) * kept)])
    offer((tmp_path / "archive").as_uri())
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "broken archive: " in err and err.count("\n") == 1
    assert not (tmp_path / "SOP").exists() and leftovers(tmp_path) == []


def test_archive_of_something_else_is_an_error(tmp_path, capsys, offer):
    offer(make_zip(tmp_path / "archive", {"a.txt": b"x"}).as_uri())
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "expected an archive that holds Ebay_train.txt" in err


def test_marker_at_the_top_of_the_archive(tmp_path, capsys, offer):
    files = {"images_background/Greek/c1/1.png": b"x"}
    offer(make_zip(tmp_path / "archive", files).as_uri(), marker="images_background")
    assert run(tmp_path, capsys)[0] == 0
    assert len(load_image_set("omniglot", tmp_path / "SOP", "train")) == 1


def test_folder_of_something_else_is_left_alone(tmp_path, capsys, offer):
    offer(make_zip(tmp_path / "archive").as_uri())
    (tmp_path / "SOP").mkdir()
    (tmp_path / "SOP" / "mine.txt").write_text("mine")
    status, _, err = run(tmp_path, capsys)
    assert status == 2 and "lacks Ebay_train.txt; move it away" in err
    (tmp_path / "SOP" / "mine.txt").unlink()
    assert run(tmp_path, capsys)[0] == 0


def test_no_name_is_an_error(tmp_path, capsys):
    assert "an argument is empty" in run(tmp_path, capsys, "")[2]
    with pytest.raises(SystemExit) as stop:
        download.main([f"--dir={tmp_path}"])
    assert stop.value.code == 2
    assert "no data set named; expected one of sop" in capsys.readouterr().err


def test_unknown_name_is_an_error(tmp_path, capsys):
    status, _, err = run(tmp_path, capsys, "imagenet")
    assert status == 2 and err.count("\n") == 1
    assert "unknown data set 'imagenet'; expected one of sop, cub200_2011" in err


@pytest.mark.parametrize(
    ("name", "place"),
    [("inshop", "inshop/list_eval_partition.txt"), ("cub200_2010", "CUB_200_2010/images")],
)
def test_manual_sets_say_what_to_do(tmp_path, capsys, name, place):
    status, out, _ = run(tmp_path, capsys, name)
    assert status == 1 and str(tmp_path / place) in out and "https://" in out
    (tmp_path / place).mkdir(parents=True)
    assert run(tmp_path, capsys, name)[:2] == (0, f"{tmp_path / place} is already there\n")


def test_sources_are_those_that_the_reader_names():
    for name in (*download.SOURCES, *download.MANUAL):
        assert f"python data/download.py {name} " in DATASETS[name].to_get.replace("'", " ")


def test_shell_script_of_the_reference(tmp_path):
    (tmp_path / "Stanford_Online_Products").mkdir()
    (tmp_path / "Stanford_Online_Products" / "Ebay_train.txt").write_text("")
    run = subprocess.run(
        ["sh", "download_sop.sh", f"--dir={tmp_path}"],
        cwd=ROOT / "data",
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "already there" in run.stdout
