"""The cache: what it holds, how it is built and continued, and what it refuses."""

import errno
import multiprocessing
import os
import pickle
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from metric_learning.common import fingerprint
from metric_learning.common.fingerprint import relative_paths
from metric_learning.reader.batches import cache, cache_build
from metric_learning.reader.batches.cache import CachePaths
from metric_learning.reader.batches.cache_build import open_cache
from metric_learning.reader.sets.image_set import ImageError, ImageSet
from metric_learning.reader.transforms import reduce_image

FORK = multiprocessing.get_context("fork")


def make_image_set(folder):
    paths = sorted(map(str, folder.glob("*.*")))
    labels = np.arange(len(paths)) // 4
    everything = np.ones(len(paths), dtype=bool)
    names = {label: str(label) for label in range(labels.max() + 1)}
    return ImageSet("toy", "train", paths, labels, names, everything, everything)


@pytest.fixture
def images(tmp_path):
    """A folder of 24 images, half of them with a short side above 40 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        size = rng.integers(10, 30, 2) if i % 2 else rng.integers(50, 90, 2)
        coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
        image = Image.fromarray(cv2.resize(coarse, (int(size[0]), int(size[1]))))
        image.save(folder / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def build(image_set, folder, short_side=40, workers=2, on_bad_image="error", lines=None):
    return open_cache(
        image_set,
        folder,
        short_side,
        num_workers=workers,
        on_bad_image=on_bad_image,
        log=[].append if lines is None else lines.append,
    )


def assert_holds(cached, image_set, short_side=40):
    for i in range(len(image_set)):
        rgb, found = image_set.read_image(i), cached.read_image(i)
        if min(rgb.shape[:2]) > short_side:
            assert min(found.shape[:2]) == short_side
            scale = short_side / min(rgb.shape[:2])
            assert max(found.shape[:2]) == round(max(rgb.shape[:2]) * scale)
            rgb = reduce_image(rgb, found.shape[:2])
        np.testing.assert_array_equal(found, rgb)


@pytest.mark.parametrize("workers", [0, 3])
def test_it_holds_what_the_files_hold(images, folder, workers):
    image_set, lines = make_image_set(images), []
    cached = build(image_set, folder, workers=workers, lines=lines)
    assert_holds(cached, image_set)
    assert (
        len(cached) == 24 and cached.paths is image_set.paths and cached.labels is image_set.labels
    )
    size = CachePaths(folder).pixels.stat().st_size
    assert size == sum(cached.read_image(i).size for i in range(24))
    assert f"{size / 1e9:.2f} GB for 24 images" in lines[0] and "GB free; 24 to decode" in lines[0]
    assert lines[1:] == [f"cache: {folder} is complete"]


def test_a_complete_cache_is_opened_without_decoding_or_writing(images, folder, monkeypatch):
    image_set, lines = make_image_set(images), []
    build(image_set, folder)
    expected = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(ImageSet, "read_image", None)
    monkeypatch.setattr(cache_build, "locked", None)
    cached = build(image_set, folder, lines=lines)
    assert cached.read_image(3).dtype == np.uint8 and lines == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == expected


def test_no_write_reaches_the_file(images, folder):
    image_set = make_image_set(images)
    build(image_set, folder).read_image(0)[:] = 0
    assert_holds(build(image_set, folder), image_set)


def test_workers_open_the_map_instead_of_getting_a_copy(images, folder):
    image_set = make_image_set(images)
    sent = pickle.dumps(build(image_set, folder).cached)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).read(1), image_set.read_image(1))


def test_the_data_set_may_move(images, folder):
    build(make_image_set(images), folder)
    moved = images.rename(images.with_name("elsewhere"))
    assert_holds(build(make_image_set(moved), folder), make_image_set(moved))
    assert relative_paths(["/a/b/c.png", "/a/d.png"]) == ["b/c.png", "d.png"]
    assert relative_paths(["/a/b/c.png"]) == ["c.png"]


class SlowImages(ImageSet):
    """Images that take some seconds each, so that a build can be caught in the middle."""

    def read_image(self, i, decoding):
        time.sleep(self.seconds)
        return super().read_image(i, decoding)


def start_builder(images, folder, seconds):
    """Build the cache in another process, which logs to LOG and then writes its checksum there."""

    def run():
        image_set = SlowImages(**vars(make_image_set(images)))
        object.__setattr__(image_set, "seconds", seconds)
        cache_build.SYNC_SECONDS = 0.0
        lines = LogFile(log)
        cached = build(image_set, folder, workers=1, lines=lines)
        lines.append(f"sum {sum(int(cached.read_image(i).sum()) for i in range(24))}")

    log = images.parent / f"{len(list(images.parent.glob('*.log')))}.log"
    log.touch()
    process = FORK.Process(target=run)
    process.start()
    return process, log


class LogFile:
    def __init__(self, path):
        self.path = path

    def append(self, line):
        with self.path.open("a") as file:
            file.write(f"{line}\n")


def wait_for(condition, process):
    while not condition():
        assert process.is_alive(), "the builder ended too early"
        time.sleep(0.005)


def num_present(folder):
    path = CachePaths(folder).index
    return int((np.load(path)["state"] == 1).sum()) if path.exists() else 0


@pytest.mark.parametrize("moment", [1, 9])
def test_a_killed_build_is_continued(images, folder, moment):
    process, _ = start_builder(images, folder, 0.03)
    wait_for(lambda: num_present(folder) >= moment, process)
    process.kill()
    process.join()
    there, lines = num_present(folder), []
    assert moment <= there < 24
    assert_holds(build(make_image_set(images), folder, lines=lines), make_image_set(images))
    assert lines[0].endswith(f"GB free; {24 - there} to decode")


@pytest.mark.parametrize("kept", ["nothing", "about", "index"])
def test_a_build_that_died_early_or_lost_its_pixels_is_continued(images, folder, kept):
    image_set = make_image_set(images)
    build(image_set, folder)
    files = CachePaths(folder)
    files.pixels.unlink()
    files.about.write_text(files.about.read_text().partition(',\n  "index"')[0] + "\n}\n")
    if kept != "index":
        files.index.unlink()
    if kept == "nothing":
        files.about.unlink()
        files.images.unlink()
    assert_holds(build(image_set, folder), image_set)


def test_two_processes_build_one_cache(images, folder):
    builders = [start_builder(images, folder, 0.02) for _ in range(2)]
    for process, _ in builders:
        process.join(timeout=60)
        assert process.exitcode == 0
    logs = [log.read_text() for _, log in builders]
    assert logs[0].splitlines()[-1] == logs[1].splitlines()[-1]
    assert sum(log.count("to decode") for log in logs) == 1
    assert sum(log.count("is complete") for log in logs) == 1
    assert_holds(build(make_image_set(images), folder), make_image_set(images))


def test_the_one_that_waits_says_so_and_goes_on_when_the_builder_dies(images, folder):
    builder, _ = start_builder(images, folder, 10)
    wait_for(CachePaths(folder).index.exists, builder)
    waiting, log = start_builder(images, folder, 0)
    wait_for(log.read_text, waiting)
    assert log.read_text() == f"cache: another process builds {folder}, waiting for it\n"
    builder.kill()
    builder.join()
    waiting.join(timeout=60)
    assert waiting.exitcode == 0 and "is complete" in log.read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.about.write_text("{"), "about.json cannot be read"),
        (lambda files: files.index.write_bytes(b"no array"), "index.npy cannot be read"),
        (lambda files: files.index.unlink(), "index.npy cannot be read"),
        (lambda files: os.truncate(files.pixels, 100), "pixels.bin has 100 bytes, not"),
        (lambda files: files.pixels.unlink(), "pixels.bin has 0 bytes, not"),
        (lambda files: np.save(files.index, np.zeros(3)), "index.npy is not of 24 images"),
    ],
)
def test_a_damaged_cache_is_refused(images, folder, damage, message):
    build(make_image_set(images), folder)
    damage(CachePaths(folder))
    with pytest.raises(ImageError, match=message) as error:
        build(make_image_set(images), folder)
    assert str(folder) in str(error.value) and "delete" in str(error.value)


def test_an_index_or_pixels_with_flipped_bits_are_found(images, folder):
    image_set = make_image_set(images)
    cached = build(image_set, folder)
    files = CachePaths(folder)
    offset = int(np.load(files.index)["offset"][5])
    with files.pixels.open("r+b") as file:
        file.seek(offset + 7)
        byte = file.read(1)
        file.seek(offset + 7)
        file.write(bytes([byte[0] ^ 1]))
    cached = build(image_set, folder)
    cached.read_image(4)
    with pytest.raises(ImageError, match="image 5 is not what was written"):
        cached.read_image(5)
    entries = np.load(files.index)
    for name, message in (("height", "contradicts itself"), ("checksum", "is not what was")):
        damaged = entries.copy()
        damaged[name][2] += 1
        np.save(files.index, damaged)
        with pytest.raises(ImageError, match=f"index.npy {message}"):
            build(image_set, folder)


def test_a_cache_of_something_else_is_refused(images, folder, monkeypatch):
    image_set = make_image_set(images)
    build(image_set, folder)
    with pytest.raises(ImageError, match="other cache_size \\(40, not 50\\)"):
        build(image_set, folder, short_side=50)
    monkeypatch.setattr(cache, "DECODER", 99)
    with pytest.raises(ImageError, match="other decoder \\(2, not 99\\)"):
        build(image_set, folder)
    monkeypatch.undo()
    os.remove(image_set.paths[3])
    with pytest.raises(ImageError, match="other images \\(1 removed, the first 03.jpg\\)"):
        build(make_image_set(images), folder)
    about = CachePaths(folder).about
    about.write_text(about.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(ImageError, match="other version \\(1, not 2\\)"):
        build(make_image_set(images), folder)


@pytest.mark.parametrize("is_ended", [True, False])
def test_changed_images_are_decoded_again(images, folder, is_ended):
    """Of another size or of the same; a build that was broken off goes on with them."""
    image_set, lines = make_image_set(images), []
    build(image_set, folder)
    files = CachePaths(folder)
    if not is_ended:
        files.about.write_text(files.about.read_text().partition(',\n  "index"')[0] + "\n}\n")
    for i, size in ((0, (90, 80)), (11, (20, 20))):
        Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(image_set.paths[i])
    os.utime(image_set.paths[20])  # the same content at another time
    assert_holds(build(image_set, folder, lines=lines), image_set)
    assert "cache: 2 images have changed, the first 00.jpg: " in lines[0]
    assert lines[1].endswith("GB free; 2 to decode")
    lines.clear()
    assert_holds(build(image_set, folder, lines=lines), image_set)
    assert lines == []


def test_an_image_of_the_same_byte_size_is_decoded_again(images, folder):
    """Its time of modification is that of before, as cp --preserve leaves it."""
    path = images / "bitmap.bmp"
    Image.new("RGB", (9, 9), "red").save(path)
    image_set, before = make_image_set(images), path.stat()
    build(image_set, folder)
    Image.new("RGB", (9, 9), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert_holds(build(image_set, folder), image_set)


def test_verify_compares_all_contents(images, folder, monkeypatch):
    image_set, hashed = make_image_set(images), []
    build(image_set, folder)
    hash_file = fingerprint._hash_file
    monkeypatch.setattr(
        fingerprint, "_hash_file", lambda path: [hashed.append(path), hash_file(path)][1]
    )
    build(image_set, folder)
    assert hashed == []
    options = {"num_workers": 1, "on_bad_image": "error", "log": print}
    open_cache(image_set, folder, 40, verify=True, **options)
    assert sorted(hashed) == image_set.paths


def test_a_folder_of_something_else_is_left_alone(images, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds something that is no cache"):
        build(make_image_set(images), folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_images_in_memory_are_refused(images, folder):
    image_set = ImageSet(
        **vars(make_image_set(images)) | {"images": np.zeros((24, 4, 4, 3), np.uint8)}
    )
    with pytest.raises(ValueError, match="--cache is not used by --dataset=toy"):
        build(image_set, folder)


def test_a_disk_that_is_too_small_is_refused_before_the_work(images, folder, monkeypatch):
    usage = (10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(cache_build.shutil, "disk_usage", lambda path: Usage(*usage))
    with pytest.raises(OSError, match="but 0.00 GB are free: free some") as error:
        build(make_image_set(images), folder)
    assert "\n" not in str(error.value) and num_present(folder) == 0
    monkeypatch.undo()
    assert_holds(build(make_image_set(images), folder), make_image_set(images))


class Usage(tuple):
    def __new__(cls, *values):
        return super().__new__(cls, values)

    free = property(lambda self: self[2])


def test_a_disk_that_fills_up_meanwhile_is_one_line(images, folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="are free: free some"):
        build(make_image_set(images), folder)
    monkeypatch.undo()
    assert_holds(build(make_image_set(images), folder), make_image_set(images))


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8 no jpeg \xff\xd9", "cut"])
def test_a_broken_image_stops_the_build_or_is_noted(images, folder, damage):
    path = images / "06.jpg"
    path.write_bytes(path.read_bytes()[:-200] if damage == "cut" else damage)
    image_set, lines = make_image_set(images), []
    with pytest.raises(ImageError, match=str(path)):
        build(image_set, folder)
    cached = build(image_set, folder, on_bad_image="skip", lines=lines)
    assert sum(str(path) in line for line in lines) == 1
    assert cached.cached.broken().tolist() == [6]
    with pytest.raises(ImageError, match=f"{path}: it was broken when the cache was built"):
        cached.read_image(6)
    for i in (5, 7):
        assert cached.read_image(i).size
    with pytest.raises(ImageError, match=f"{path} \\(1 broken of 24"):
        build(image_set, folder)


def test_too_many_broken_images_stop_the_build(images, folder):
    for i in (6, 9):
        (images / f"{i:02d}.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match="2 broken images among 24"):
        build(make_image_set(images), folder, on_bad_image="skip")
