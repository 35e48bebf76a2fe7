"""Boxes: how they are read, and what they cut out of a photo."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from metric_learning.reader.sets.boxes import WHOLE, crop_box, parse_box
from metric_learning.reader.sets.image_set import ImageError
from metric_learning.reader.sets.plain_images import unlabelled

PHOTO = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


@pytest.mark.parametrize(
    ("cells", "box"),
    [
        (("1", "2", "7", "5"), (1, 2, 7, 5)),
        ((" 1.0", "2.", "7.00", "5"), (1, 2, 7, 5)),  # as pandas writes a column with gaps
        (("-3", "0", "4", "9"), (-3, 0, 4, 9)),
        (("", "nan", " ", "None"), WHOLE),
    ],
)
def test_cells_of_a_box(cells, box):
    assert parse_box(cells) == box


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("1", "2", "", "5"), "in whole pixels, or empty cells"),
        (("1", "2", "7.5", "5"), "in whole pixels"),
        (("1", "2", "x", "5"), "in whole pixels"),
        (("1", "2", "7"), "in whole pixels"),
        (("7", "2", "1", "5"), "x_1 < x_2"),
        (("1", "5", "7", "5"), "y_1 < y_2"),
        (("0", "0", "9" * 12, "5"), "at most"),
    ],
)
def test_what_is_no_box(cells, said):
    with pytest.raises(ValueError, match=said):
        parse_box(cells)


def test_the_last_two_are_exclusive_and_what_lies_beyond_is_left_away():
    assert np.array_equal(crop_box(PHOTO, (1, 2, 7, 5)), PHOTO[2:5, 1:7])
    assert np.array_equal(crop_box(PHOTO, (-4, -4, 3, 99)), PHOTO[:, :3])
    assert crop_box(PHOTO, WHOLE) is PHOTO
    for box in ((8, 0, 12, 4), (-5, -5, -1, -1)):
        with pytest.raises(ValueError, match="outside of its 8 x 6 pixels"):
            crop_box(PHOTO, box)


def test_a_box_is_of_the_upright_image(tmp_path):
    image = Image.fromarray(PHOTO)
    exif = image.getexif()
    exif[0x0112] = 6  # stored on its side
    file = tmp_path / "a.png"
    image.save(file, exif=exif)
    boxes = np.array([(1, 2, 4, 7), WHOLE, (6, 0, 9, 3)], np.int32)
    images = replace(unlabelled([str(file)] * 3), boxes=boxes)

    upright = np.rot90(PHOTO, -1)
    assert np.array_equal(images.read_image(0), upright[2:7, 1:4])
    assert np.array_equal(images.read_image(1), upright)
    assert images.read_shape(0) == (5, 3) and images.read_shape(1) == (8, 6)
    assert images.name_of(0) == f"{file} (1,2,4,7)" and images.name_of(1) == str(file)
    assert images.select(np.array([2])).boxes.tolist() == [[6, 0, 9, 3]]
    with pytest.raises(ImageError, match=r"box 6,0,9,3 is outside of its 6 x 8 pixels"):
        images.read_image(2)
