"""Small pictures of images, for pages."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

JPEG_QUALITY = 75


def small_jpeg(image: np.ndarray, pixels: int) -> bytes:
    """Return an image (H, W, 3) uint8 as a JPEG whose longer side has at most `pixels`."""
    picture = Image.fromarray(image)
    picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as an address that holds it, for pages that open offline."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
