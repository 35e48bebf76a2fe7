"""Sizes of images in pixels: the side of a square, or height and width."""

from __future__ import annotations

Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """Return the height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def scaled(size: Size, scale: float) -> tuple[int, int]:
    """Return the height and width of a size times a scale, rounded down."""
    height, width = sides(size)
    return int(height * scale), int(width * scale)


def size_text(size: Size) -> str:
    """Say a size in a line: `224 px`, or `256 x 128 px` where height and width differ."""
    height, width = sides(size)
    return f"{height} px" if height == width else f"{height} x {width} px"


def shape_flag(size: Size) -> str:
    """Return the flag that asks for inputs of a size."""
    height, width = sides(size)
    return f"--image_shape=3,{height},{width}"
