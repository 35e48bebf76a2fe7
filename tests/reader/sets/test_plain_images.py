"""Plain images without labels."""

import pytest
from PIL import Image

from metric_learning.reader.sets.plain_images import list_plain_images


def test_all_images_below_a_folder_but_hidden_ones(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/._c.JPG", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    image_set = list_plain_images(tmp_path)
    assert image_set.paths == [str(tmp_path / "a/c.JPG"), str(tmp_path / "b.png")]
    assert image_set.labels.tolist() == [-1, -1] and not image_set.class_names


def test_one_image(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert list_plain_images(tmp_path / "a.png").paths == [str(tmp_path / "a.png")]


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images below"):
        list_plain_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such image"):
        list_plain_images(tmp_path / "gone")
