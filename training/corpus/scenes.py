"""Simple scenes that are made up: two or three coloured shapes, and what is true of them.

Scene i of a seed is a function of the two, so a corpus is a range of numbers: nothing is stored, and the scenes from
`first` on are fresh to a model that was trained on those before. What a scene's captions may say
(training/corpus/scene_words) and how it looks (training/corpus/scene_drawing) follow from the same two numbers.

Only what is clear is made: sizes have a gap between them, and no two things stand so askew that a person would
hesitate whether one is above or left of the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal, get_args

SIDE = 64
"""Pixels of a scene, each way."""

Shape = Literal["circle", "square", "triangle", "star", "heart", "cross"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Relation = Literal["left", "right", "above", "below", "inside", "around"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
RADII: dict[Size, tuple[float, float]] = {"small": (5.5, 7.0), "large": (10.5, 13.0)}
"""Half a thing's extent, in pixels; only what has something inside is larger still."""
CONTAINER_RADII = (18.0, 22.0)
CONTAINERS: tuple[Shape, ...] = ("circle", "square")

MARGIN, GAP = 1.0, 2.0
"""Least pixels to the edge, and between two things."""
STRAIGHT = 0.35
"""Two things are beside (or above) one another if their offset across is at most this part of the one along."""
ASKEW = 0.6
"""They are neither if it is at least this part; between the two lies doubt, and no scene."""
ROOM = 0.8
"""Part of a container's radius that what is inside keeps within."""

OPPOSITE: dict[Relation, Relation] = {
    "left": "right", "right": "left", "above": "below", "below": "above", "inside": "around", "around": "inside",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene."""

    shape: Shape
    colour: Colour
    size: Size
    x: float
    y: float
    """Its centre, in pixels from the left and from the top."""
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """The truth about a scene. No two things share both shape and colour."""

    seed: int
    index: int
    things: tuple[Thing, ...]


def relation(one: Thing, other: Thing) -> Relation | None:
    """How `one` stands to `other` ("left": it is left of it), or None where a person could not say in one word."""
    across, down = other.x - one.x, other.y - one.y
    distance = math.hypot(across, down)
    if distance + one.radius <= ROOM * other.radius:
        return "inside"
    if distance + other.radius <= ROOM * one.radius:
        return "around"
    apart = one.radius + other.radius
    if abs(across) >= apart and abs(down) <= STRAIGHT * abs(across):
        return "left" if across > 0 else "right"
    if abs(down) >= apart and abs(across) <= STRAIGHT * abs(down):
        return "above" if down > 0 else "below"
    return None


def make_scene(seed: int, index: int) -> Scene:
    """Scene `index` of a seed."""
    random = Random(f"scene {seed} {index}")  # of a text: Random seeds itself from its SHA-512, alike everywhere
    (layout,) = random.choices(list(_LAYOUTS), list(_LAYOUTS.values()))
    while True:
        things = layout(random)
        kinds = {(thing.shape, thing.colour) for thing in things}
        if len(kinds) == len(things) and not any(_doubtful(one, other) for one, other in combinations(things, 2)):
            random.shuffle(things)
            return Scene(seed, index, tuple(things))


def make_scenes(seed: int, count: int, first: int = 0) -> list[Scene]:
    """Scenes `first` to `first + count` of a seed."""
    return [make_scene(seed, index) for index in range(first, first + count)]


def scenes_sha256(scenes: Iterable[Scene]) -> str:
    """What identifies a corpus of scenes: the digest of all that is true of them."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(repr(scene).encode())
    return digest.hexdigest()


def _doubtful(one: Thing, other: Thing) -> bool:
    if relation(one, other) is not None:
        return False
    small, large = sorted((abs(one.x - other.x), abs(one.y - other.y)))
    return small < ASKEW * large or math.hypot(small, large) < one.radius + other.radius + GAP


def _pair(random: Random) -> list[Thing]:
    """One beside the other, or one above the other."""
    return _line(random, random.choices(SIZES, k=2), first=0)


def _row(random: Random) -> list[Thing]:
    """Three in a row or a column; one at most is large, or there were no room."""
    sizes: list[Size] = ["small", "small", random.choice(SIZES)]
    random.shuffle(sizes)
    return _line(random, sizes, first=1)


def _line(random: Random, sizes: Sequence[Size], first: int) -> list[Thing]:
    """Along either axis; across it, all keep near to the one at position `first`."""
    radii = [_radius(random, size) for size in sizes]
    along = _spread(random, radii)
    across = _anywhere(random, radii[first])
    flip = random.random() < 0.5
    things = []
    for index, (size, radius) in enumerate(zip(sizes, radii, strict=True)):
        near = across if index == first else _near(random, across, STRAIGHT * abs(along[index] - along[first]), radius)
        things.append(_thing(random, size, radius, (near, along[index]) if flip else (along[index], near)))
    return things


def _corner(random: Random) -> list[Thing]:
    """One with another beside it and a third above or below it."""
    sizes = random.choices(SIZES, k=3)
    middle, beside, over = (_radius(random, size) for size in sizes)
    x, x_beside = _either_way(random, [middle, beside])
    y, y_over = _either_way(random, [middle, over])
    places = [
        (x, y),
        (x_beside, _near(random, y, STRAIGHT * abs(x_beside - x), beside)),
        (_near(random, x, STRAIGHT * abs(y_over - y), over), y_over),
    ]
    return [
        _thing(random, size, radius, place)
        for size, radius, place in zip(sizes, (middle, beside, over), places, strict=True)
    ]


def _nested(random: Random) -> list[Thing]:
    """A small one inside a large one."""
    outer, inner = random.uniform(*CONTAINER_RADII), _radius(random, "small")
    x, y = _anywhere(random, outer), _anywhere(random, outer)
    angle, distance = random.uniform(0, 2 * math.pi), random.uniform(0, ROOM * outer - inner)
    container = Thing(random.choice(CONTAINERS), random.choice(COLOURS), "large", x, y, outer)
    inside = (x + distance * math.cos(angle), y + distance * math.sin(angle))
    colour = random.choice([colour for colour in COLOURS if colour != container.colour])
    return [container, Thing(random.choice(SHAPES), colour, "small", *inside, inner)]


_LAYOUTS: dict[Callable[[Random], list[Thing]], float] = {_pair: 0.4, _nested: 0.15, _row: 0.2, _corner: 0.25}
"""How scenes are laid out, and how often."""


def _thing(random: Random, size: Size, radius: float, place: tuple[float, float]) -> Thing:
    return Thing(random.choice(SHAPES), random.choice(COLOURS), size, *place, radius)


def _radius(random: Random, size: Size) -> float:
    return random.uniform(*RADII[size])


def _spread(random: Random, radii: Sequence[float]) -> list[float]:
    """Centres along an axis, in this order, what room is left divided at random."""
    slack = SIDE - 2 * MARGIN - 2 * sum(radii) - GAP * (len(radii) - 1)
    cuts = sorted(random.uniform(0, slack) for _ in radii)
    return [
        MARGIN + 2 * sum(radii[:index]) + GAP * index + radius + cut
        for index, (radius, cut) in enumerate(zip(radii, cuts, strict=True))
    ]


def _either_way(random: Random, radii: Sequence[float]) -> list[float]:
    """The same in this order or the other."""
    centres = _spread(random, radii)
    return centres if random.random() < 0.5 else [SIDE - centre for centre in centres]


def _anywhere(random: Random, radius: float) -> float:
    return random.uniform(MARGIN + radius, SIDE - MARGIN - radius)


def _near(random: Random, centre: float, reach: float, radius: float) -> float:
    return min(max(random.uniform(centre - reach, centre + reach), MARGIN + radius), SIDE - MARGIN - radius)
