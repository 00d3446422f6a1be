"""How a scene looks: its shapes with smooth edges on an uneven grey ground, each a little askew, and some noise."""

from __future__ import annotations

import colorsys
import io
import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from carousel.training.corpus.scenes import SIDE, Colour, Scene, Shape, Thing

FINENESS = 4
"""Shapes are drawn this many times larger and averaged, which makes their edges smooth."""
NOISE = (4.0, 20.0)
"""The width of the noise, of 256 levels, in the clearest picture and in the noisiest."""

_COLOURS: dict[Colour, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 6), (0.85, 1.0), (0.75, 0.95)),
    "orange": ((24, 32), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((52, 59), (0.8, 1.0), (0.92, 1.0)),
    "green": ((110, 145), (0.65, 0.95), (0.5, 0.8)),
    "blue": ((208, 234), (0.7, 0.95), (0.7, 0.95)),
    "purple": ((269, 287), (0.6, 0.85), (0.55, 0.8)),
    "pink": ((329, 341), (0.38, 0.52), (0.97, 1.0)),
}
"""Hue in degrees, saturation and value, each from and to."""

_MAX_TURN: dict[Shape, float] = {"circle": 0, "square": 12, "triangle": 15, "star": 36, "heart": 12, "cross": 12}
"""In degrees, either way: no square becomes a diamond, no cross an X."""

Points = list[tuple[float, float]]


def _regular(corners: int, *radii: float) -> Points:
    """Corners around the origin, the first at the top, their radii taken in turn."""
    angles = [2 * math.pi * index / corners - math.pi / 2 for index in range(corners)]
    return [
        (radii[index % len(radii)] * math.cos(angle), radii[index % len(radii)] * math.sin(angle))
        for index, angle in enumerate(angles)
    ]


def _heart() -> Points:
    turns = [2 * math.pi * index / 40 for index in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
        )
        for t in turns
    ]


_ARM = 0.34
_OUTLINES: dict[Shape, Points] = {
    "circle": _regular(48, 1.0),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(x, y + 0.2) for x, y in _regular(3, 1.15)],
    "star": _regular(10, 1.1, 0.45),
    "heart": _heart(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
"""Of radius 1 around the origin, y downwards."""


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE pixels. A function of the scene."""
    random = Random(f"look {scene.seed} {scene.index}")
    ground = _ground(random).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = ground.resize((SIDE * FINENESS, SIDE * FINENESS), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(image)
    for thing in sorted(scene.things, key=lambda thing: -thing.radius):  # what is inside comes on top
        canvas.polygon(_outline(thing, random), fill=_colour(random, *_COLOURS[thing.colour]))
    pixels = np.asarray(image.reduce(FINENESS), np.float32)  # [H, W, 3]
    noise = np.random.default_rng(random.getrandbits(64)).random(pixels.shape, np.float32) - 0.5
    noisy = pixels + random.uniform(*NOISE) * noise
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def encode_scene(scene: Scene) -> bytes:
    """The picture as a PNG file, which keeps every pixel."""
    content = io.BytesIO()
    draw_scene(scene).save(content, "PNG")
    return content.getvalue()


def _ground(random: Random) -> Image.Image:
    """Two by two pixels of nearly the same dull colour, to be blown up."""
    hue, saturation, value = random.random() * 360, random.uniform(0.0, 0.12), random.uniform(0.12, 0.95)
    image = Image.new("RGB", (2, 2))
    for place in ((0, 0), (1, 0), (0, 1), (1, 1)):
        shade = min(max(value + random.uniform(-0.08, 0.08), 0.0), 1.0)
        image.putpixel(place, _colour(random, (hue, hue), (saturation, saturation), (shade, shade)))
    return image


def _outline(thing: Thing, random: Random) -> Points:
    turn = math.radians(random.uniform(-1, 1) * _MAX_TURN[thing.shape])
    across, down = thing.radius * FINENESS * math.cos(turn), thing.radius * FINENESS * math.sin(turn)
    x0, y0 = thing.x * FINENESS, thing.y * FINENESS
    return [(x0 + across * x - down * y, y0 + down * x + across * y) for x, y in _OUTLINES[thing.shape]]


def _colour(
    random: Random, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(
        random.uniform(*hue) / 360 % 1.0, random.uniform(*saturation), random.uniform(*value)
    )
    return round(255 * red), round(255 * green), round(255 * blue)
