"""Views of a product for the demo data set: pose, light, shadow, clutter and occlusion."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw_view(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an RGB image of half the picture's side that shows it once, somewhere, somehow."""
    side = picture.width
    scene = _draw_background(side, rng)
    product = _pose(picture, rng)
    _cast_shadow(scene, product, rng)
    scene.paste(product, (0, 0), product)
    if rng.random() < 0.4:
        _occlude(scene, rng)
    return _light(scene.reduce(2), rng)


def _pose(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror, turn, shear, tilt, scale and move the product; most of it stays in the frame."""
    side = picture.width
    scale = rng.uniform(0.85, 1.1)
    angle = np.radians(rng.uniform(-12, 12))
    mirror = rng.choice([-1.0, 1.0])
    narrowing = rng.uniform(0.85, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.uniform(-0.12, 0.12)], [rng.uniform(-0.08, 0.08), 1]])

    matrix = np.eye(3)
    matrix[:2, :2] = scale * rotation @ shear @ np.diag([mirror * narrowing, 1.0])
    matrix[2, :2] = rng.uniform(-0.2, 0.2, size=2) / side

    room = 0.08 * side
    before, after = np.eye(3), np.eye(3)
    before[:2, 2] = -side / 2
    after[:2, 2] = side / 2 + rng.uniform(-room, room, size=2)

    inverse = np.linalg.inv(after @ matrix @ before)
    coefficients = tuple((inverse / inverse[2, 2]).ravel()[:8])
    method, resample = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    return picture.transform(picture.size, method, coefficients, resample)


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a muted colour, so that the product stands out."""
    red, green, blue = (rng.uniform(110, 235) + rng.uniform(-20, 20, size=3)).clip(0, 255)
    return int(red), int(green), int(blue)


def _draw_background(side: int, rng: np.random.Generator) -> Image.Image:
    """Draw a textured wall and floor with things lying about."""
    wall, floor = np.array(_random_colour(rng)), np.array(_random_colour(rng))
    horizon = rng.uniform(0.4, 0.9)
    is_floor = (np.arange(side) / side > horizon)[:, None, None]
    surface = np.where(is_floor, floor, wall) + np.zeros((side, side, 1))

    grain = rng.uniform(-1, 1, size=(rng.integers(3, 24), rng.integers(3, 24)))
    texture = Image.fromarray(grain.astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    surface += rng.uniform(3, 15) * np.asarray(texture)[:, :, None]
    scene = Image.fromarray(surface.clip(0, 255).astype(np.uint8))

    draw = ImageDraw.Draw(scene)
    for _ in range(rng.integers(1, 6)):
        x, y = rng.uniform(0, side, size=2)
        _draw_thing(draw, x, y, rng.uniform(0.05, 0.18) * side, rng)
    return scene


def _draw_thing(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, rng: np.random.Generator
) -> None:
    """Draw a disc, a polygon, a rod or a striped box around (x, y)."""
    colour = _random_colour(rng)
    form = rng.integers(4)

    if form == 0:
        height = radius * rng.uniform(0.4, 1)
        draw.ellipse([x - radius, y - height, x + radius, y + height], fill=colour)
    elif form == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, size=rng.integers(3, 7)))
        draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], colour)
    elif form == 2:
        end = (x + rng.uniform(-3, 3) * radius, y + rng.uniform(-3, 3) * radius)
        draw.line([(x, y), end], fill=colour, width=int(radius / 4) + 1)
    else:
        draw.rectangle([x - radius, y - radius, x + radius, y + radius], fill=colour)
        stripe = _random_colour(rng)
        for step in (-1, -0.5, 0, 0.5):
            top = y + step * radius
            draw.rectangle([x - radius, top, x + radius, top + radius / 4], fill=stripe)


def _cast_shadow(scene: Image.Image, product: Image.Image, rng: np.random.Generator) -> None:
    """Darken the scene beside the product."""
    side = scene.width
    shift_x, shift_y = rng.uniform(-0.06, 0.06, size=2) * side
    shadow = Image.new("L", scene.size)
    strength = rng.uniform(0.2, 0.6)
    shadow.paste(
        product.getchannel("A").point(lambda alpha: alpha * strength), (int(shift_x), int(shift_y))
    )
    scene.paste((0, 0, 0), (0, 0, side, side), shadow.filter(ImageFilter.BoxBlur(side / 48)))


def _occlude(scene: Image.Image, rng: np.random.Generator) -> None:
    """Put something in front, near one edge or corner of the frame."""
    side = scene.width
    angle = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(0.3, 0.45) * side
    x, y = side / 2 + distance * np.cos(angle), side / 2 + distance * np.sin(angle)
    _draw_thing(ImageDraw.Draw(scene), x, y, rng.uniform(0.08, 0.15) * side, rng)


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness and colour of the light, let it fall off to one side, add noise."""
    side = image.width
    pixels = np.asarray(image, dtype=np.float32)
    cast = rng.uniform(0.75, 1.1) * rng.uniform(0.9, 1.1, size=3)
    slope = rng.uniform(-0.3, 0.3, size=2)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    pixels = pixels * cast * (1 + slope[0] * x + slope[1] * y)[:, :, None]
    pixels += rng.normal(0, rng.uniform(1, 5), size=pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
