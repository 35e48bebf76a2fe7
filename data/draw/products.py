"""Products of the demo data set: five kinds of things with forms, parts, patterns and colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from metric_learning.data.draw.shapes import (
    PATTERNS,
    Canvas,
    Colour,
    arc_points,
    pattern_image,
    turned_points,
)

# Few palettes, shared by all kinds: colour narrows the search but does not name the class.
PALETTES: tuple[tuple[Colour, Colour], ...] = (
    ((196, 48, 43), (244, 228, 200)),
    ((38, 84, 150), (236, 240, 244)),
    ((46, 120, 82), (240, 206, 92)),
    ((52, 52, 58), (230, 126, 40)),
    ((232, 226, 214), (150, 60, 110)),
    ((238, 176, 52), (60, 66, 110)),
)
TRIMS: tuple[Colour, ...] = ((92, 62, 40), (36, 36, 40), (186, 190, 196), (204, 160, 74))
NUM_VARIANTS = 4
_NUM_CANDIDATES = 100


@dataclass(frozen=True)
class Product:
    """What all views of one class have in common.

    `shape` and `part`, 0..3, are the forms of the body and of what is attached to it (handle, foot,
    legs, arms, luggage), `pattern`, `palette` and `trim` indices, the others proportions, 0..1.
    """

    shape: int
    part: int
    pattern: int
    palette: int
    trim: int
    width: float
    height: float
    detail: float


_CHOICES = {
    "shape": NUM_VARIANTS,
    "part": NUM_VARIANTS,
    "pattern": len(PATTERNS),
    "palette": len(PALETTES),
    "trim": len(TRIMS),
}


def draw_products(number: int, rng: np.random.Generator) -> list[Product]:
    """Draw products of one kind that differ from one another in as many traits as can be found."""
    products: list[Product] = []
    for _ in range(number):
        candidates = [_random_product(rng) for _ in range(_NUM_CANDIDATES)]
        products.append(
            max(candidates, key=lambda c: min((_difference(c, p) for p in products), default=0))
        )
    return products


def _random_product(rng: np.random.Generator) -> Product:
    choices = {name: int(rng.integers(number)) for name, number in _CHOICES.items()}
    return Product(**choices, width=rng.random(), height=rng.random(), detail=rng.random())


def _difference(first: Product, second: Product) -> float:
    """Number of differing traits, plus a little for proportions; the form counts double."""
    total = 0.0
    for field in fields(Product):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name in _CHOICES:
            total += (a != b) * (2 if field.name in ("shape", "part") else 1)
        else:
            total += abs(a - b)
    return total


def draw_product(kind: str, product: Product, side: int) -> Image.Image:
    """Draw a product on a transparent square of `side` pixels."""
    main, accent = PALETTES[product.palette]
    outline = (main[0] // 4, main[1] // 4, main[2] // 4)
    canvas = Canvas(side, outline)
    periods = 8 + round(4 * product.detail)
    cover = pattern_image(PATTERNS[product.pattern], side, periods, main, accent)
    KINDS[kind](canvas, product, cover)
    return canvas.image


def _draw_mug(canvas: Canvas, product: Product, cover: Image.Image) -> None:
    radius = 0.2 + 0.08 * product.width
    height = 0.36 + 0.26 * product.height
    top, bottom = 0.52 - height / 2, 0.52 + height / 2
    trim, accent = TRIMS[product.trim], PALETTES[product.palette][1]

    # The handle, or a saucer.
    right, middle = 0.5 + radius, top + 0.45 * height
    if product.part == 0:
        canvas.path(arc_points(right - 0.04, middle, 0.17, 0.3 * height, -90, 90), 0.055, trim)
    elif product.part == 1:
        corner = right + 0.13
        upper, lower = middle - 0.25 * height, middle + 0.25 * height
        corners = [(right - 0.05, upper), (corner, upper), (corner, lower), (right - 0.05, lower)]
        canvas.path(corners, 0.055, trim)
    elif product.part == 2:
        for x, start in ((0.5 - radius, 90), (right, -90)):
            ear = arc_points(x, middle, 0.11, 0.2 * height, start, start + 180)
            canvas.path(ear, 0.045, trim)
    else:
        canvas.ellipse(0.5, bottom, radius + 0.17, 0.065, trim)

    # The body, and what is in it.
    profiles = (
        lambda v: 1.0,
        lambda v: 1.1 - 0.5 * v,
        lambda v: 0.8 + 0.35 * np.sin(np.pi * v),
        lambda v: 1.15 * np.sqrt(max(1 - v**2.5, 0.12)),
    )
    profile = profiles[product.shape]
    canvas.polygon(turned_points(0.5, top, height, radius, profile), cover)
    canvas.ellipse(0.5, top, radius * profile(0.0), 0.05, accent)
    canvas.ellipse(0.5, top + 0.008, radius * profile(0.0) * 0.82, 0.034, (70, 46, 34))


def _draw_lamp(canvas: Canvas, product: Product, cover: Image.Image) -> None:
    radius = 0.2 + 0.1 * product.width
    height = 0.22 + 0.14 * product.height
    trim = TRIMS[product.trim]

    # The foot.
    x = 0.5 if product.part != 2 else 0.36
    end = 0.1 + height
    if product.part == 0:
        canvas.path([(x, end - 0.05), (x, 0.88)], 0.035, trim)
        canvas.ellipse(x, 0.89, 0.17, 0.045, trim)
    elif product.part == 1:
        for foot in (-0.22, 0.0, 0.22):
            canvas.path([(x, end), (x + foot, 0.92)], 0.03, trim)
    elif product.part == 2:
        arch = arc_points(0.57, 0.32, 0.21, 0.27, 180, 360)
        canvas.path([(x, end), *arch, (0.78, 0.88)], 0.035, trim)
        canvas.box(0.64, 0.87, 0.92, 0.93, trim)
    else:
        body = turned_points(
            x, end, 0.9 - end, 0.17, lambda v: 0.25 + 0.75 * np.sin(np.pi * v**1.6)
        )
        canvas.polygon(body, trim)
        canvas.box(x - 0.1, 0.87, x + 0.1, 0.92, trim)

    # The shade.
    profiles = (
        lambda v: 0.4 + 0.7 * v,
        lambda v: np.sqrt(max(1 - (1 - v) ** 2, 0.0)) * 1.05,
        lambda v: 0.85,
        lambda v: np.sqrt(max(1 - (2 * v - 1) ** 2, 0.0)) * 0.85,
    )
    canvas.polygon(turned_points(x, 0.1, height, radius, profiles[product.shape]), cover)


def _draw_chair(canvas: Canvas, product: Product, cover: Image.Image) -> None:
    half = 0.19 + 0.07 * product.width
    top = 0.2 - 0.12 * product.height
    trim = TRIMS[product.trim]
    left, right, seat, floor = 0.5 - half, 0.5 + half, 0.56, 0.93

    # The legs.
    if product.part == 0:
        for x in (left + 0.02, right - 0.02):
            canvas.path([(x, seat + 0.08), (x, floor)], 0.035, trim)
            canvas.path([(x * 0.7 + 0.15, seat), (x * 0.7 + 0.15, floor - 0.07)], 0.03, trim)
    elif product.part == 1:
        for x, foot in ((left + 0.05, -0.15), (right - 0.05, 0.15)):
            canvas.path([(x, seat + 0.05), (x + foot, floor)], 0.04, trim)
    elif product.part == 2:
        canvas.path([(0.5, seat), (0.5, floor - 0.06)], 0.05, trim)
        canvas.path([(0.28, floor), (0.5, floor - 0.08), (0.72, floor)], 0.04, trim)
    else:
        for x in (left + 0.03, right - 0.03):
            canvas.path([(x, seat + 0.05), (x, floor - 0.04)], 0.035, trim)
        canvas.path(arc_points(0.5, 0.68, half + 0.14, 0.25, 25, 155), 0.04, trim)

    # The back.
    if product.shape == 0:
        canvas.box(left, top, right, seat, cover)
    elif product.shape == 1:
        canvas.ellipse(0.5, (top + seat) / 2, half, (seat - top) / 2, cover)
    elif product.shape == 2:
        for x in np.linspace(left + 0.02, right - 0.02, 5):
            canvas.path([(x, top + 0.03), (x, seat)], 0.035, trim)
        canvas.box(left - 0.01, top, right + 0.01, top + 0.1, cover)
    else:
        for x in (left, right):
            canvas.path([(x, top), (x, seat)], 0.04, trim)
        for y in np.linspace(top + 0.03, seat - 0.13, 3):
            canvas.box(left, y, right, y + 0.07, cover)

    # The seat.
    front = half + 0.06
    corners = [(left, seat - 0.05), (right, seat - 0.05), (0.5 + front, 0.66), (0.5 - front, 0.66)]
    canvas.polygon(corners, cover)


def _draw_sofa(canvas: Canvas, product: Product, cover: Image.Image) -> None:
    half = 0.3 + 0.06 * product.width
    top = 0.36 - 0.12 * product.height
    trim, accent = TRIMS[product.trim], PALETTES[product.palette][1]
    left, right, seat, base = 0.5 - half, 0.5 + half, 0.56, 0.74

    # The feet.
    if product.detail < 0.5:
        for x in (left, right):
            canvas.path([(x, base), (x, 0.83)], 0.045, trim)
    else:
        canvas.box(left, base, right, 0.8, trim)

    # The back.
    if product.shape == 0:
        canvas.box(left, top, right, seat, cover)
    elif product.shape == 1:
        canvas.polygon([(left, seat), *arc_points(0.5, seat, half, seat - top, 180, 360)], cover)
    else:
        for i in range(product.shape):
            step = (right - left) / product.shape
            canvas.box(left + i * step, top, left + (i + 1) * step, seat, cover)
        canvas.ellipse(left + half * 0.5, seat - 0.06, 0.075, 0.06, accent)

    # The seat and its arms.
    canvas.box(left, seat, right, base, cover)
    canvas.path([(left, seat + 0.07), (right, seat + 0.07)], 0.02, accent)
    for side, x in ((-1, left), (1, right)):
        if product.part == 0:
            canvas.box(x - 0.06, seat - 0.1, x + 0.06, base + 0.01, trim)
        elif product.part == 1:
            canvas.box(x - 0.05, seat - 0.05, x + 0.05, base, cover)
            canvas.ellipse(x, seat - 0.06, 0.085, 0.07, trim)
        elif product.part == 2:
            end = x - side * 0.04
            points = [(end, top), (x + side * 0.09, base), (end, base)]
            canvas.polygon(points, trim)


def _draw_bicycle(canvas: Canvas, product: Product, cover: Image.Image) -> None:
    main, accent = PALETTES[product.palette]
    trim = TRIMS[product.trim]
    radius = (0.18, 0.17, 0.19, 0.12)[product.shape] + 0.03 * product.width
    hub = 0.84 - radius
    rear, front, crank = (0.25, hub), (0.77, hub), (0.47, hub + 0.02)

    # The wheels.
    for x, y in (rear, front):
        if product.part == 1:
            canvas.ellipse(x, y, radius, radius, cover)
        else:
            for angle in range(0, 180, 36):
                canvas.path(arc_points(x, y, radius, radius, angle, angle + 180)[::32], 0.012, trim)
        canvas.path(arc_points(x, y, radius, radius, 0, 360), 0.035, (44, 44, 48))

    # The frame.
    seat, head = (0.38, 0.4 - 0.06 * product.height), (0.68, 0.36 - 0.06 * product.height)
    if product.shape == 0:
        canvas.path([rear, seat, head, crank, rear], 0.04, main)
        canvas.path([seat, crank], 0.04, main)
    elif product.shape == 1:
        canvas.path([rear, crank, seat, rear], 0.04, main)
        canvas.path([crank, (0.58, hub - 0.06), head], 0.06, main)
    elif product.shape == 2:
        canvas.path(arc_points(0.47, hub, 0.22, 0.27, 180, 320), 0.055, main)
        canvas.path([seat, crank], 0.04, main)
        canvas.path([crank, head], 0.04, main)
    else:
        canvas.path([rear, (0.47, hub - 0.1), front], 0.07, main)
        canvas.path([seat, (0.45, hub)], 0.04, main)

    # Fork, handlebar and saddle.
    canvas.path([head, front], 0.04, main)
    bar = (head[0] - 0.02, head[1] - 0.08)
    canvas.path([head, bar], 0.035, trim)
    grip = (bar[0] - 0.11, bar[1]) if product.detail < 0.5 else (bar[0] + 0.1, bar[1] + 0.06)
    canvas.path([bar, grip], 0.035, trim)
    canvas.path([(seat[0] - 0.06, seat[1] - 0.02), (seat[0] + 0.06, seat[1] - 0.02)], 0.05, trim)

    # Luggage.
    if product.part == 0:
        corners = [(seat[0] + 0.05, seat[1] + 0.04), (head[0] - 0.06, head[1] + 0.05)]
        canvas.polygon([*corners, (crank[0] + 0.02, crank[1] - 0.1)], cover)
    elif product.part == 2:
        canvas.box(0.7, head[1] - 0.04, 0.94, head[1] + 0.13, cover)
    elif product.part == 3:
        canvas.box(0.08, hub - radius - 0.1, 0.34, hub - 0.02, cover)
        canvas.path([(0.08, hub - radius - 0.1), (0.34, hub - radius - 0.1)], 0.03, accent)


KINDS: dict[str, Callable[[Canvas, Product, Image.Image], None]] = {
    "bicycle": _draw_bicycle,
    "chair": _draw_chair,
    "lamp": _draw_lamp,
    "mug": _draw_mug,
    "sofa": _draw_sofa,
}
