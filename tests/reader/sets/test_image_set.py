import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFile

from metric_learning.reader import ImageError, ImageSet
from metric_learning.reader.sets.image_set import decode_image


def make_image_set(paths, images=None, is_query=None):
    n = len(paths)
    return ImageSet(
        name="demo",
        split="test",
        paths=[str(path) for path in paths],
        labels=np.arange(n, dtype=np.int64),
        class_names={i: str(i) for i in range(n)},
        is_query=np.ones(n, dtype=bool) if is_query is None else is_query,
        is_gallery=np.ones(n, dtype=bool),
        images=images,
    )


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)


def test_sizes_classes_and_self_retrieval():
    image_set = make_image_set(["a", "b"])
    assert len(image_set) == 2 and image_set.num_classes == 2 and image_set.is_self_retrieval
    assert not make_image_set(["a", "b"], is_query=np.array([True, False])).is_self_retrieval


def test_images_in_memory_are_returned():
    images = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    image_set = make_image_set(["data_batch_1:0000", "data_batch_1:0001"], images)
    np.testing.assert_array_equal(image_set.read_image(1), images[1])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_pillow_does(photo, mode, progressive):
    data = encode(photo.convert(mode), "JPEG", progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    found = decode_image(data, "a.jpg")
    assert found.dtype == np.uint8 and found.shape == (48, 64, 3)
    assert np.abs(found.astype(int) - expected).max() <= (1 if mode == "CMYK" else 0)


def test_jpeg_with_bytes_after_its_end_is_decoded(photo):
    data = encode(photo, "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\0\0", "a"), decode_image(data, "a"))


def test_palette_alpha_grey_and_one_bit_become_rgb():
    grid = np.arange(48, dtype=np.uint8).reshape(6, 8)
    rgb = np.stack([grid, grid * 2, grid * 3], axis=2)
    alpha = np.dstack([rgb, np.full((6, 8), 7, np.uint8)])
    grey = np.repeat(grid[:, :, None], 3, axis=2)
    palette = Image.fromarray(grid)
    palette.putpalette([value for i in range(256) for value in (i, i * 2 % 256, i * 3 % 256)])
    bits = Image.fromarray((grid % 2 * 255).astype(np.uint8)).convert("1")
    expected = {
        "rgb": (Image.fromarray(rgb), rgb),
        "rgba": (Image.fromarray(alpha), rgb),
        "grey": (Image.fromarray(grid), grey),
        "grey and alpha": (Image.fromarray(np.dstack([grid, grid])), grey),
        "palette": (palette, rgb),
        "one bit": (bits, grey % 2 * 255),
    }
    for name, (image, pixels) in expected.items():
        found = decode_image(encode(image, "PNG"), name)
        np.testing.assert_array_equal(found, pixels, err_msg=name)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    found = decode_image(encode(Image.fromarray(values), "PNG"), "a.png")
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))


def test_float_and_32_bit_pixels_are_refused():
    for pixels in (np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)):
        with pytest.raises(ImageError, match="expected an 8-bit or 16-bit image"):
            decode_image(encode(Image.fromarray(pixels), "TIFF"), "a.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_image_is_an_error(photo, kind, kept):
    data = encode(photo, kind)
    with pytest.raises(ImageError, match="cannot read image folder/a: "):
        decode_image(data[: int(len(data) * kept)], "folder/a")


def test_truncated_image_is_an_error_under_pillows_lenient_switch(photo, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(photo, "JPEG")
    with pytest.raises(ImageError, match="(?i)truncated"):
        decode_image(data[: len(data) // 2], "a.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_missing_empty_and_foreign_files_are_one_line_errors(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "fake.jpg").write_bytes(b"\xff\xd8 nothing \xff\xd9")
    (tmp_path / "folder.jpg").mkdir()
    reasons = {
        "gone.jpg": "No such file",
        "empty.jpg": "empty",
        "text.jpg": "not an image file",
        "fake.jpg": "",
        "folder.jpg": "Is a directory",
    }
    image_set = make_image_set([tmp_path / name for name in reasons])
    for i, (name, reason) in enumerate(reasons.items()):
        with pytest.raises(ImageError) as caught:
            image_set.read_image(i)
        message = str(caught.value)
        assert message.startswith(f"cannot read image {tmp_path / name}: ")
        assert reason in message and "\n" not in message


def test_image_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(ImageError("cannot read image a: gone")))
    assert isinstance(error, ImageError) and str(error) == "cannot read image a: gone"
