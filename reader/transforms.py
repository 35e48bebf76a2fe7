"""Image transforms: an RGB image becomes a training crop or a test crop, both uint8.

`reference_*` are the reference's: OpenCV's Lanczos over 8x8 pixels without antialiasing.
`standard_*` are torchvision's, antialiased. `v1_*` are those of the reference's first version:
Pillow's bilinear, antialiased. All draw their training crops from the same helper.
Crops stay uint8, a quarter of the bytes: `reader.batches.loader.to_inputs` normalises them by the
batch. `Transform.eval` makes the network input of one image, with the same values.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from metric_learning.common.sizes import Size, sides

if TYPE_CHECKING:
    import torch  # imported where an image is resized: it takes seconds

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Longer images are cut to this ratio around their centre before the short side is resized:
# a 1 x 5000 strip enlarged in full would take hundreds of megabytes and be cropped anyway.
MAX_ASPECT = 16
CROP_ASPECT = 3 / 4, 4 / 3  # width by height of a square training crop, as in the reference

# The reference's first version resizes a test image to this short side in pixels, whose centre of
# this size it crops; other crops in proportion.
V1_SHORT_SIDE, V1_CROP_SIZE = 256, 224

# Lanczos as OpenCV computes it, in integers.
TAPS = 8  # pixels along each axis that a value is made of
ONE = 2048  # the weight 1
SHIFT = np.int32(22)  # bits of ONE x ONE
HALF = np.int32(1 << 21)
LEAST, MOST = np.int32(0), np.int32(255)
S45 = math.sqrt(0.5)
# Of tap i: cosine and sine of its distance from the first tap, i x 5 pi / 4.
TURNS = np.array(
    [(1, 0), (-S45, -S45), (0, 1), (S45, -S45), (-1, 0), (S45, S45), (0, -1), (-S45, S45)]
)
CACHED_SIZES = 1024  # about 15 MB


class Crop(NamedTuple):
    """What a random crop takes of an image: a box, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class Transform(NamedTuple):
    """One way to resize images."""

    # (rgb, crop, crop_size) -> (S, T, 3) uint8
    train: Callable[[np.ndarray, Crop, Size], np.ndarray]
    # (rgb, crop_size, what the image covers before the crop or None: its own, whether it is
    # squashed to that) -> (S, T, 3) uint8
    test: Callable[..., np.ndarray]
    # (rgb, height, width) -> (height, width, 3) uint8, as training crops are resized
    resize: Callable[[np.ndarray, int, int], np.ndarray]
    alpha: str  # what becomes of transparent pixels, see `reader.sets.image_set.Decoding`

    def eval(
        self,
        rgb: np.ndarray,
        crop_size: Size,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> np.ndarray:
        """Return the network input of a test image, its normalised test crop.

        Args:
            rgb: (H, W, 3) uint8 image of any size.
            crop_size: height and width of the result in pixels, S and T, or the side of a square.
            mean: per channel, of values in 0..1.
            std: per channel, of values in 0..1.

        Shape:
            returns: (3, S, T) float32.
        """
        return _normalise(self.test(rgb, crop_size), mean, std)


def reference_train(rgb: np.ndarray, crop: Crop, crop_size: Size) -> np.ndarray:
    """Return a crop of the image (H, W, 3), resized with Lanczos4: (S, T, 3), uint8 both."""
    resized = resize_lanczos(_cut(rgb, crop), *sides(crop_size))
    return cv2.flip(resized, 1) if crop.mirrored else resized


def standard_train(rgb: np.ndarray, crop: Crop, crop_size: Size) -> np.ndarray:
    """As `reference_train`, resized with antialiased bilinear interpolation."""
    resized = resize_antialiased(_cut(rgb, crop), *sides(crop_size))
    return cv2.flip(resized, 1) if crop.mirrored else resized


def reference_test(
    rgb: np.ndarray, crop_size: Size, covered: Size | None = None, is_squashed: bool = False
) -> np.ndarray:
    """Return the central crop of the image that was resized with Lanczos4 to cover it.

    An image (H, W, 3) uint8 of any size becomes (S, T, 3) uint8 of the crop's size. It is resized
    in proportion to the least size that covers the crop, or `covered`, as many pixels or more: for
    a square, its short side becomes as long as that. An image that `is_squashed` gets that very
    height and width, whatever its proportions.
    """
    return _central_crop(rgb, crop_size, covered, is_squashed, resize_lanczos, math.floor)


def standard_test(
    rgb: np.ndarray, crop_size: Size, covered: Size | None = None, is_squashed: bool = False
) -> np.ndarray:
    """As `reference_test`, with antialiased bicubic resizing.

    The whole short side is kept, whatever timm's `crop_pct` of a model is: what its classifiers cut
    off a border, a search may need.
    """
    return _central_crop(rgb, crop_size, covered, is_squashed, resize_bicubic, round)


def v1_train(rgb: np.ndarray, crop: Crop, crop_size: Size) -> np.ndarray:
    """As `reference_train`, resized with Pillow's antialiased bilinear interpolation."""
    resized = resize_by_pillow(_cut(rgb, crop), *sides(crop_size))
    return cv2.flip(resized, 1) if crop.mirrored else resized


def v1_test(
    rgb: np.ndarray, crop_size: Size, covered: Size | None = None, is_squashed: bool = False
) -> np.ndarray:
    """Return the central crop of an image that was resized to cover 8/7 of the crop.

    As `reference_test`, by Pillow's antialiased bilinear interpolation, the sides rounded down.
    """
    covered = covered or v1_covered(crop_size)
    way = resize_by_pillow, _half_up, v1_resized_shape
    return _central_crop(rgb, crop_size, covered, is_squashed, *way)


def random_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    min_crop_area: float = 0.08,
    horizontal_flip: bool = True,
    aspect: tuple[float, float] = CROP_ASPECT,
) -> Crop:
    """Draw the crop of an image of this size.

    `min_crop_area` is its smallest area as a fraction of the image, and `aspect` the range of its
    width by its height; it is mirrored with probability 1/2 if there is a horizontal flip.
    """
    box = random_box(height, width, rng, min_crop_area, aspect)
    return Crop(*box, mirrored=bool(horizontal_flip and rng.random() < 0.5))


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    min_crop_area: float,
    aspect: tuple[float, float] = CROP_ASPECT,
) -> tuple[int, int, int, int]:
    """Draw a crop as the reference does; it always lies inside the image.

    The width-to-height ratio r is uniform in a range, by default 3/4..4/3. The area is uniform
    between `min_crop_area` of the image and the largest box of ratio r that fits in.

    Returns:
        top, left, height and width in pixels.
    """
    ratio = rng.uniform(*aspect)
    largest_area = min(1.0, width / height / ratio, height / width * ratio)
    area = rng.uniform(min(min_crop_area, largest_area), largest_area) * height * width
    box_width = min(max(int(math.sqrt(area * ratio)), 1), width)
    box_height = min(max(int(math.sqrt(area / ratio)), 1), height)
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def resized_shape(height: int, width: int, covered: Size) -> tuple[int, int]:
    """Return the least size in proportion that covers another, rounded; a side is a short side."""
    least_height, least_width = sides(covered)
    scale = max(least_height / height, least_width / width)
    return round(height * scale), round(width * scale)


def v1_resized_shape(height: int, width: int, covered: Size) -> tuple[int, int]:
    """As `resized_shape`, the longer side rounded down."""
    least_height, least_width = sides(covered)
    if least_height * width >= least_width * height:
        return least_height, least_height * width // height
    return least_width * height // width, least_width


def v1_covered(crop_size: Size) -> tuple[int, int]:
    """Return the height and width, in pixels, that v1's test images cover before their crop."""
    height, width = (round(side * V1_SHORT_SIDE / V1_CROP_SIZE) for side in sides(crop_size))
    return height, width


def reduce_image(rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the image at another (height, width), or itself where it has that already.

    Antialiased bicubic, as in `standard_test`: as close to the image as area averaging (PSNR of
    crops within 0.1 dB), with more of its contrast left, in a third of the time.
    """
    return rgb if rgb.shape[:2] == shape else np.ascontiguousarray(resize_bicubic(rgb, *shape))


def resize_bicubic(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3), antialiased."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    bicubic = InterpolationMode.BICUBIC
    resized = functional.resize(to_tensor(rgb), [height, width], bicubic, antialias=True)
    return to_rgb(resized)


def resize_bilinear(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (3, H, W) uint8, antialiased; many at once to one size: `reader.batches.resize`."""
    from torchvision.transforms.v2 import functional

    return functional.resize(image, [height, width], antialias=True)


def resize_antialiased(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3), bilinear, antialiased, as torchvision does."""
    return to_rgb(resize_bilinear(to_tensor(rgb), height, width))


def resize_by_pillow(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3), bilinear, antialiased, as Pillow does."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Return the image as a (3, H, W) uint8 tensor."""
    import torch

    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def to_rgb(image: torch.Tensor) -> np.ndarray:
    """Return an image (3, H, W) as (H, W, 3)."""
    return image.permute(1, 2, 0).numpy()


def _cut(rgb: np.ndarray, crop: Crop) -> np.ndarray:
    return rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _half_up(number: float) -> int:
    return math.floor(number + 0.5)


def _central_crop(
    rgb: np.ndarray,
    crop_size: Size,
    covered: Size | None,
    is_squashed: bool,
    resize: Callable[[np.ndarray, int, int], np.ndarray],
    rounded: Callable[[float], int],
    in_proportion: Callable[[int, int, Size], tuple[int, int]] = resized_shape,
) -> np.ndarray:
    """Resize to what is covered and return the central crop; `rounded` gives its first pixel.

    Where the image is not squashed, `in_proportion` gives the size that it is resized to.
    """
    height, width = sides(covered or crop_size)
    if not is_squashed:
        rgb = within_aspect(rgb)
        height, width = in_proportion(rgb.shape[0], rgb.shape[1], (height, width))
    crop_height, crop_width = sides(crop_size)
    top, left = rounded((height - crop_height) / 2), rounded((width - crop_width) / 2)
    return resize(rgb, height, width)[top : top + crop_height, left : left + crop_width]


def within_aspect(rgb: np.ndarray) -> np.ndarray:
    """Cut an image to MAX_ASPECT around its centre."""
    height, width = rgb.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return rgb[top : top + longest, left : left + longest]


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (3,) float32 s and t with (value / 255 - mean) / std = value * s - t."""
    scale = 1 / (255 * np.asarray(std))
    shift = np.asarray(mean) / np.asarray(std)
    return scale.astype(np.float32), shift.astype(np.float32)


def _normalise(crop: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Map (S, T, 3) values 0..255 to (3, S, T) values (value / 255 - mean) / std, float32."""
    scale, shift = scale_and_shift(mean, std)
    image = np.array(crop.transpose(2, 0, 1), dtype=np.float32, order="C")
    image *= scale[:, None, None]
    image -= shift[:, None, None]
    return image


def resize_lanczos(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return what cv2.resize returns with INTER_LANCZOS4, to the bit, in a sixth of its time.

    OpenCV sums 8 x 8 pixels per value in integers, so that any order of summing gives its result.
    Here the sums run along contiguous rows, which processors do many at a time: first over the
    columns, of the transposed image, then over the rows, of that transposed back.

    An image (H, W, 3) uint8 of any strides becomes (height, width, 3) uint8, contiguous.
    """
    compiled = _compiled()
    if compiled is None:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)
    sum_lines, sum_and_round = compiled

    num_rows, num_columns = rgb.shape[:2]
    columns = cv2.transpose(rgb).reshape(num_columns, num_rows * 3)
    sums = np.empty((width, num_rows * 3), np.int32)
    sum_lines(columns, *_taps(num_columns, width), sums)

    rows = cv2.transpose(sums.reshape(width, num_rows, 3)).reshape(num_rows, width * 3)
    values = np.empty((height, width * 3), np.uint8)
    sum_and_round(rows, *_taps(num_rows, height), values)
    return values.reshape(height, width, 3)


@lru_cache(CACHED_SIZES)
def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels of a line (new_size, 8) int64 and their weights in each new pixel, int32.

    The weights are about 2048 in sum. The arithmetic is OpenCV's, in single precision where it is
    so there.
    """
    positions = ((np.arange(new_size) + 0.5) * (1 / (new_size / size)) - 0.5).astype(np.float32)
    first = np.floor(positions).astype(np.int64) - 3
    offsets = positions - np.floor(positions)  # 0..1
    distances = offsets[:, None] + np.float32(3) - np.arange(TAPS, dtype=np.float32)  # in pixels

    angles = -distances.astype(np.float64) * (math.pi / 4)
    sines = np.sin(angles[:, :1]) * TURNS[:, 0] + np.cos(angles[:, :1]) * TURNS[:, 1]
    is_hit = np.abs(distances) < 1e-6  # it then outweighs all others
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(is_hit, 1e30, sines / angles**2).astype(np.float32)

    total = np.zeros(new_size, np.float32)
    for tap in range(TAPS):
        total += weights[:, tap]
    weights *= (np.float32(1) / total)[:, None]
    pixels = np.clip(first[:, None] + np.arange(TAPS), 0, size - 1)
    return pixels, np.rint(weights * np.float32(ONE)).astype(np.int32)


@lru_cache(1)
def _compiled() -> tuple[Any, Any] | None:
    """Compile `_sum_lines` and `_sum_and_round`; None where that cannot be."""
    try:
        import numba
        from numba.extending import register_jitable

        register_jitable(_sum_line)
        compile_it = numba.njit(nogil=True, cache=True)
        return compile_it(_sum_lines), compile_it(_sum_and_round)
    except (ImportError, RuntimeError) as error:  # no numba, or no folder for what it compiles
        warnings.warn(f"images are resized by OpenCV, which takes longer: {error}", stacklevel=2)
        return None


def _sum_line(lines: Any, taps: Any, weights: Any, sums: Any) -> None:
    """Add up eight weighted lines, of (n, M), as sums (M,) int32."""
    a, b, c, d = lines[taps[0]], lines[taps[1]], lines[taps[2]], lines[taps[3]]
    e, f, g, h = lines[taps[4]], lines[taps[5]], lines[taps[6]], lines[taps[7]]
    of_a, of_b, of_c, of_d = weights[0], weights[1], weights[2], weights[3]
    of_e, of_f, of_g, of_h = weights[4], weights[5], weights[6], weights[7]
    for j in range(len(sums)):  # all eight in one go: nothing is stored in between
        total = a[j] * of_a + b[j] * of_b + c[j] * of_c + d[j] * of_d
        total += e[j] * of_e + f[j] * of_f + g[j] * of_g + h[j] * of_h
        sums[j] = np.int32(total)


def _sum_lines(lines: Any, taps: Any, weights: Any, sums: Any) -> None:
    """Fill all lines of sums, (S, M) int32."""
    for i in range(len(sums)):
        _sum_line(lines, taps[i], weights[i], sums[i])


def _sum_and_round(lines: Any, taps: Any, weights: Any, values: Any) -> None:
    """Fill all lines of values, (S, M) uint8, with rounded sums."""
    sums = np.empty(values.shape[1], np.int32)
    for i in range(len(values)):
        _sum_line(lines, taps[i], weights[i], sums)
        line = values[i]
        for j in range(len(line)):
            value = np.int32(np.int32(sums[j] + HALF) >> SHIFT)  # else numba takes 64 bits
            line[j] = np.uint8(min(max(value, LEAST), MOST))


TRANSFORMS: dict[str, Transform] = {
    "reference": Transform(reference_train, reference_test, resize_lanczos, "drop"),
    "standard": Transform(standard_train, standard_test, resize_antialiased, "white"),
    "v1": Transform(v1_train, v1_test, resize_by_pillow, "drop"),
}
reference_eval = TRANSFORMS["reference"].eval
