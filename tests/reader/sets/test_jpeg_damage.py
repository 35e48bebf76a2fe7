"""Holes in the data of JPEG files are found, and clean files are not accused."""

import io

import numpy as np
import pytest
from PIL import Image

from metric_learning.reader.sets.image_files import read_content
from metric_learning.reader.sets.image_set import AS_REFERENCE
from metric_learning.reader.sets.jpeg_damage import find_damage

KINDS = {
    "baseline": {},
    "fine": {"quality": 97, "subsampling": 0, "optimize": True},
    "coarse": {"quality": 15},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 3},
}


def draw(size=(203, 149), seed=0):
    """A picture with smooth and noisy parts, of a size that no block divides."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize(size, Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 20, pixels.shape) * (np.arange(size[0])[:, None] % 64 > 32)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def start_of_data(data):
    start = data.find(b"\xff\xda") + 2
    return start + int.from_bytes(data[start : start + 2], "big")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(203, 149), (8, 8), (1, 17)])
def test_clean_files_are_not_accused(kind, mode, size):
    data = encode(draw(size).convert(mode), **KINDS[kind])
    assert find_damage(data) == ""
    for padding in (b"\0\0", b"\0" * 500, b"\xff" * 5, b"some bytes"):
        assert find_damage(data[:-2] + padding + data[-2:]) == "", padding
    assert find_damage(data + b"bytes behind the end" * 3) == ""
    start = data.index(b"\xff\xdb")
    assert find_damage(data[:start] + b"junk" + data[start:]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_holes_are_found(kind):
    data = encode(draw(), **KINDS[kind])
    rng = np.random.default_rng(1)
    start, missed = start_of_data(data), []
    size = min(400, (len(data) - start) // 4)
    for _ in range(20):
        place = int(rng.integers(start, len(data) - 2 - size))
        for name, filling in {
            "cut out": b"",
            "zeros": bytes(size),
            "noise": rng.bytes(size),
        }.items():
            holed = data[:place] + filling + data[place + size :]
            if not find_damage(holed):
                missed.append((name, place))
    assert len(missed) <= 1, missed


def test_missing_parts_are_named():
    progressive, plain = encode(draw(), progressive=True), encode(draw())
    last = progressive.rindex(b"\xff\xda")
    assert find_damage(progressive[:last] + b"\xff\xd9") == "a scan is missing"
    assert find_damage(plain[: len(plain) // 2] + b"\xff\xd9") == "image data are missing"
    restarts = encode(draw(), restart_marker_rows=1)
    place = restarts.index(b"\xff\xd3")
    assert find_damage(restarts[:place] + restarts[place + 2 :]) != ""


def test_what_is_not_looked_into_is_not_accused():
    data = encode(draw())
    arithmetic = data.replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert find_damage(arithmetic) == find_damage(data.replace(b"\xff\xc4", b"\xff\xe4")) == ""


def test_a_file_with_a_hole_is_broken_for_the_tools_alone(tmp_path):
    data, path = encode(draw()), tmp_path / "a.jpg"
    start = start_of_data(data)
    path.write_bytes(data[: start + 300] + data[start + 900 :])
    content = read_content(str(path), AS_REFERENCE)
    assert content.state == "broken" and content.reason.startswith("damaged JPEG: ")
    assert content.pixels is None and content.data is not None
    path.write_bytes(data)
    assert read_content(str(path), AS_REFERENCE).state == "ok"


def test_real_photographs_are_not_accused(real_cub):
    files = sorted((real_cub / "images").rglob("*.jpg"))
    assert len(files) > 100
    assert [file for file in files[::3] if find_damage(file.read_bytes())] == []
