"""Painting of simple shapes, from which the products of the demo data set are composed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Fill = Colour | Image.Image
Point = tuple[float, float]

PATTERNS = ("plain", "stripes", "bands", "checks", "dots", "zigzag")


class Canvas:
    """A transparent square on which shapes are painted, in coordinates 0..1 (y downwards)."""

    def __init__(self, side: int, outline: Colour) -> None:
        self.image = Image.new("RGBA", (side, side), (*outline, 0))
        self._side, self._outline = side, outline

    def polygon(self, points: Sequence[Point], fill: Fill) -> None:
        """Fill a closed shape and draw its outline."""
        scaled = [(x * self._side, y * self._side) for x, y in points]
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(scaled, fill=255)
        if isinstance(fill, Image.Image):
            self.image.paste(fill, (0, 0), mask)
        else:
            self.image.paste((*fill, 255), (0, 0, *self.image.size), mask)
        width = max(self._side // 96, 1)
        ImageDraw.Draw(self.image).line(
            [*scaled, scaled[0]], (*self._outline, 255), width, joint="curve"
        )

    def box(self, left: float, top: float, right: float, bottom: float, fill: Fill) -> None:
        """Fill an upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        """Fill an ellipse of centre (x, y)."""
        self.polygon(arc_points(x, y, rx, ry, 0, 360), fill)

    def path(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line of round corners and ends."""
        scaled = [(x * self._side, y * self._side) for x, y in points]
        draw = ImageDraw.Draw(self.image)
        edge = max(self._side / 96, 1)
        for thickness, paint in (
            (width * self._side + edge, self._outline),
            (max(width * self._side - edge, 1), colour),
        ):
            draw.line(scaled, (*paint, 255), round(thickness), joint="curve")
            radius = thickness / 2
            for x, y in (scaled[0], scaled[-1]):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], (*paint, 255))


def arc_points(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Return points of an arc, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 33))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def turned_points(
    x: float, top: float, height: float, radius: float, profile: Callable[[float], float]
) -> list[Point]:
    """Return the outline of a turned body whose radius at depth v = 0..1 is radius * profile(v)."""
    depths = np.linspace(0, 1, 17)
    right = [(x + radius * profile(v), top + height * v) for v in depths]
    left = [(x - radius * profile(v), top + height * v) for v in depths[::-1]]
    return right + left


def pattern_image(name: str, side: int, periods: int, main: Colour, accent: Colour) -> Image.Image:
    """Return a square of the main colour with a pattern of the accent colour on it."""
    v, u = np.mgrid[0:side, 0:side] / side * periods
    masks = {
        "plain": np.zeros_like(u, dtype=bool),
        "stripes": u % 1 < 0.4,
        "bands": v % 1 < 0.4,
        "checks": (u % 1 < 0.5) != (v % 1 < 0.5),
        "dots": (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1,
        "zigzag": (v + np.abs(u % 1 - 0.5)) % 1 < 0.4,
    }
    colours = np.array([main, accent], dtype=np.uint8)
    return Image.fromarray(colours[masks[name].astype(int)]).convert("RGBA")
