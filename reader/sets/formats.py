"""Which image files are opened: formats, and the suffixes of their files."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import features

# Pillow's names of formats that it decodes itself. It tells them by content, whatever the file is
# called, so what is not here is never tried: EPS is a program that Ghostscript would run, and the
# readers of rarer formats are little tested. TGA last, since it has no mark to be known by.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "TGA": (".tga",),
}
AVIF = {"AVIF": (".avif",)}  # from Pillow 11.3 on
HEIF = {"HEIF": (".heic", ".heif", ".hif")}  # with the package pillow-heif
# How files of formats that may not be opened begin, behind four bytes.
BRANDS = {
    b"ftypavif": "AVIF",
    **dict.fromkeys((b"ftypheic", b"ftypheix", b"ftypmif1"), "HEIF"),
}
REMEDIES = {
    "AVIF": "AVIF needs Pillow 11.3 or later",
    "HEIF": "HEIC needs the package pillow-heif: pip install pillow-heif",
}


@cache
def _opened() -> dict[str, tuple[str, ...]]:
    """Format -> suffixes, of all that is opened here."""
    has_avif = "avif" in features.get_supported_modules()
    has_heif = find_spec("pillow_heif") is not None
    return FORMATS | (AVIF if has_avif else {}) | (HEIF if has_heif else {})


def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the image files that are opened here."""
    return tuple(suffix for suffixes in _opened().values() for suffix in suffixes)


def why_unknown(data: bytes) -> str:
    """Say why the bytes of a file are not opened."""
    if not data:
        return "the file is empty"
    name = BRANDS.get(data[4:12])
    if name in _opened():
        return f"a damaged or truncated {name} file"
    return REMEDIES[name] if name else "not an image file"


@cache
def pillow_formats() -> tuple[str, ...]:
    """Return the `formats` of Pillow's `Image.open`; a plugin that they need is registered."""
    formats = tuple(_opened())
    if "HEIF" in formats:
        import_module("pillow_heif").register_heif_opener()
    return formats
