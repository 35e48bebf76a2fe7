"""How files become pixels: orientation, transparency, formats, limits, and what is no file."""

import io
import os
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from metric_learning.engine.options import tables
from metric_learning.reader import ImageError
from metric_learning.reader.sets import formats
from metric_learning.reader.sets.image_set import (
    MAX_PIXELS,
    Decoding,
    decode_image,
    read_file,
    strict_pillow,
)
from metric_learning.reader.sets.plain_images import image_set_of, unlabelled

WHITE = Decoding("white")
OPTIONS = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
KINDS = ("JPEG", "PNG", "WEBP", "TIFF")


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **OPTIONS.get(kind, {}), **options)
    return file.getvalue()


def turned(photo, kind, orientation):
    """A file whose pixels are those of the photo, with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        return encode(photo, kind, tiffinfo={0x0112: orientation})
    return encode(photo, kind, exif=exif)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_orientation_is_applied_as_opencv_and_pillow_do(photo, kind, orientation, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(turned(photo, kind, orientation))
    found = unlabelled([str(path)]).read_image(0)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(found, expected)
    assert unlabelled([str(path)]).read_shape(0) == found.shape[:2]
    if kind != "TIFF":  # OpenCV fails on some of its orientations
        np.testing.assert_array_equal(found[:, :, ::-1], cv2.imread(str(path)))


def test_orientation_of_a_pillow_image_in_memory_is_applied_too(photo):
    image = Image.open(io.BytesIO(turned(photo, "JPEG", 6)))
    [found] = image_set_of([image]).images
    np.testing.assert_array_equal(found, decode_image(turned(photo, "JPEG", 6), "a"))
    assert found.shape == (64, 48, 3)


def test_orientation_behind_other_segments_and_behind_the_pixels_is_found(photo, tmp_path):
    jpeg = turned(photo, "JPEG", 8)
    jpeg = jpeg[:2] + b"\xff\xe1\x00\x08http\0\0" + b"\xff\xff\xfe\x00\x04hi" + jpeg[2:]
    png = turned(photo, "PNG", 8)
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    behind = png[:start] + png[end:-12] + png[start:end] + png[-12:]
    for data in (jpeg, behind, jpeg + b"\0"):
        (tmp_path / "a").write_bytes(data)
        image_set = unlabelled([str(tmp_path / "a")])
        assert image_set.read_image(0).shape == (64, 48, 3)
        assert image_set.read_shape(0) == (64, 48)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"nonsense" * 3])
def test_damaged_exif_is_no_orientation(photo, exif):
    data = encode(photo, "JPEG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_image(data, "a"), decode_image(encode(photo, "JPEG"), "a"))


def transparent_files():
    """Name -> bytes of a file with transparent, half and opaque pixels, of every kind of alpha."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    grey, rgb = Image.fromarray(pixels[:, :, 0]), Image.fromarray(pixels[:, :, :3].copy())
    palette = grey.copy()
    palette.putpalette([value for i in range(256) for value in (i, i * 2 % 256, i * 3 % 256)])
    one = int(pixels[0, 0, 0])
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    return {
        "rgba": encode(Image.fromarray(pixels)),
        "grey and alpha": encode(Image.fromarray(pixels[:, :, 2:].copy())),
        "rgba of 16 bits": cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes(),
        "palette": encode(palette, transparency=bytes(range(256))),
        "palette, one colour": encode(palette, transparency=one),
        "grey, one shade": encode(grey, transparency=one),
        "rgb, one colour": encode(rgb, transparency=tuple(map(int, pixels[0, 0, :3]))),
        "grey of 16 bits": encode(deep, transparency=one * 257),
        "webp": encode(Image.fromarray(pixels), "WEBP", exact=True),
    }


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("name", transparent_files())
def test_alpha_is_dropped_as_opencv_does_or_composed_on_white(name):
    data = transparent_files()[name]
    dropped, composed = decode_image(data, name), decode_image(data, name, WHITE)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(dropped[:, :, ::-1], bgr)

    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if name in ("grey of 16 bits", "grey, one shade"):  # of which OpenCV drops the transparency
        expected = np.where(dropped == dropped[0, 0], 255, dropped)
    else:
        alpha = whole[:, :, 3:] / (65535 if whole.dtype == np.uint16 else 255)
        expected = dropped * alpha + 255 * (1 - alpha)
    assert np.abs(composed - expected).max() <= 0.5
    assert (composed != dropped).any()


def test_opaque_images_are_the_same_in_both_ways(photo):
    for image in (photo, photo.convert("RGBA"), photo.convert("P"), photo.convert("LA")):
        data = encode(image)
        np.testing.assert_array_equal(decode_image(data, "a"), decode_image(data, "a", WHITE))


def test_a_pillow_image_in_memory_is_composed_too():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert image_set_of([image]).images[0].max() == 30
    assert image_set_of([image], WHITE).images[0].min() == 255


def test_no_program_is_run_for_what_is_inside_a_file(monkeypatch):
    def started(*args, **options):
        raise AssertionError(f"{args} started")

    import subprocess

    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(os, "system", started)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for data in (eps, b"%PDF-1.4\n", b"\xc5\xd0\xd3\xc6" + bytes(28) + eps):
        with pytest.raises(ImageError, match=r"cannot read image a\.jpg: not an image file"):
            decode_image(data, "a.jpg")


def test_one_limit_for_all_formats(tmp_path, photo):
    images = {kind: encode(Image.new("RGB", (1200, 1000)), kind) for kind in (*KINDS, "BMP", "GIF")}
    for kind, data in images.items():
        path = tmp_path / kind
        path.write_bytes(data)
        for read in (unlabelled([str(path)]).read_image, unlabelled([str(path)]).read_shape):
            with pytest.raises(ImageError, match="1,200,000 pixels .* give --max_pixels=2 if"):
                read(0, Decoding(max_pixels=1))
            read(0, Decoding(max_pixels=2))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pillow_s_own_limit_does_not_count(photo, kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(photo, kind)
    assert decode_image(data, "a").shape == (48, 64, 3)
    assert decode_image(data + b"\0", "a").shape == (48, 64, 3)  # a JPEG goes to Pillow then
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillow_s_switches_come_back_when_the_last_of_several_is_done(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    first, second = strict_pillow(), strict_pillow()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("is_packed", [False, True])
def test_long_text_and_profiles_in_a_png_are_no_fault(photo, is_packed):
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 2_000_000, zip=is_packed)
    info.add_itxt("other", "y" * 2_000_000, zip=is_packed)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo, pnginfo=info, icc_profile=b"z" * 2_000_000, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "a"), np.rot90(np.asarray(photo), -1))


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(10**12)
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    reasons = {
        "pipe.jpg": "expected a file, found a pipe",
        "link.jpg": "expected a file, found a pipe, a device",
        "folder.jpg": "Is a directory",
        "sparse.jpg": "1,000,000,000,000 bytes are too many, --max_pixels allows more",
        "zero\0byte.jpg": "embedded null byte",
    }
    for name, reason in reasons.items():
        image_set = unlabelled([str(tmp_path / name)])
        for read in (image_set.read_image, image_set.read_shape, image_set.read_bytes):
            with pytest.raises(ImageError, match=reason):
                read(0)


def test_the_flag_s_default_is_the_limit():
    [flag] = [flag for flag in tables.MACHINE_FLAGS if flag.name == "max_pixels"]
    assert flag.default == MAX_PIXELS


def test_every_suffix_names_a_format_that_is_opened():
    Image.init()
    known = Image.registered_extensions()
    for kind, suffixes in formats.FORMATS.items():
        for suffix in suffixes:
            assert known[suffix] in (kind, "MPO"), suffix
    assert {".jpg", ".jfif", ".jpe", ".webp", ".tiff"} <= set(formats.image_suffixes())
    assert not {".eps", ".ps", ".pdf", ".wmf"} & set(formats.image_suffixes())


@pytest.fixture
def forget():
    """Find out anew which formats there are, before and after."""
    caches = (formats._opened, formats.pillow_formats)
    for found in caches:
        found.cache_clear()
    yield
    for found in caches:
        found.cache_clear()


def test_heic_is_opened_where_its_package_is(tmp_path, monkeypatch, forget):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert ".heic" not in formats.image_suffixes()
    formats._opened.cache_clear()
    (tmp_path / "pillow_heif.py").write_text(
        "count = 0\ndef register_heif_opener():\n    global count\n    count += 1\n"
    )
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)  # the true one may be there
    assert {".heic", ".heif", ".hif"} <= set(formats.image_suffixes())
    assert "HEIF" in formats.pillow_formats() and "HEIF" in formats.pillow_formats()
    assert sys.modules.pop("pillow_heif").count == 1


def test_a_heic_that_is_not_opened_is_told_what_it_needs(monkeypatch, forget):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(30), "a.heic")


def test_a_damaged_file_of_an_opened_format_needs_no_package(monkeypatch, forget):
    monkeypatch.setattr(formats, "find_spec", lambda name: True)
    assert formats.why_unknown(b"\0\0\0\x18ftypheic") == "a damaged or truncated HEIF file"
    if "AVIF" in formats._opened():
        with pytest.raises(ImageError, match="a damaged or truncated AVIF file"):
            monkeypatch.undo()
            formats._opened.cache_clear()
            decode_image(b"\0\0\0\x18ftypavif" + bytes(30), "a.avif")


def test_real_heic_is_upright(photo, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo, "HEIF", exif=exif.tobytes(), quality=90)
    expected = np.rot90(np.asarray(photo), -1)
    (tmp_path / "a.heic").write_bytes(data)
    image_set = unlabelled([str(tmp_path / "a.heic")])
    assert np.abs(image_set.read_image(0).astype(int) - expected).mean() < 10
    assert image_set.read_shape(0) == (64, 48)


def test_read_file_reads_what_there_is(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(str(tmp_path / "a")) == b"12345"
    assert read_file(str(tmp_path / "a"), num_bytes=2) == b"12"
