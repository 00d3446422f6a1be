"""Made-up scenes: what is said of them is true, what is not true of them is found out, and they look like it."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from carousel.models.codec.image import Preprocessing, read_image
from carousel.training.corpus.captions import normalise_caption
from carousel.training.corpus.scene_drawing import draw_scene, encode_scene
from carousel.training.corpus.scene_words import (
    CAPTIONS_PER_SCENE,
    RELATION_WORDS,
    SIZE_WORDS,
    describes,
    scene_captions,
)
from carousel.training.corpus.scenes import (
    COLOURS,
    OPPOSITE,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    make_scene,
    make_scenes,
    relation,
    scenes_sha256,
)

SCENES = make_scenes(3, 400)

PAIR = Scene(0, 0, (Thing("circle", "red", "small", 12, 30, 6), Thing("square", "blue", "large", 44, 34, 12)))
NESTED = Scene(0, 1, (Thing("star", "orange", "small", 31, 30, 6), Thing("circle", "green", "large", 28, 30, 20)))
ROW = Scene(
    0,
    2,
    (
        Thing("heart", "pink", "small", 30, 9, 6),
        Thing("star", "orange", "small", 31, 28, 6),
        Thing("heart", "green", "large", 32, 50, 11),
    ),
)
CORNER = Scene(
    0,
    3,
    (
        Thing("cross", "purple", "small", 10, 14, 6),
        Thing("cross", "yellow", "large", 45, 14, 12),
        Thing("star", "yellow", "small", 10, 50, 6),
    ),
)


def test_scene_is_a_function_of_seed_and_index() -> None:
    assert make_scene(3, 7) == SCENES[7]
    assert make_scenes(3, 4, first=5) == SCENES[5:9]
    assert make_scene(4, 7).things != SCENES[7].things
    assert scene_captions(make_scene(3, 7)) == scene_captions(SCENES[7])
    assert encode_scene(make_scene(3, 7)) == encode_scene(SCENES[7])
    digests = {scenes_sha256(SCENES), scenes_sha256(SCENES[:-1]), scenes_sha256(make_scenes(4, 400))}
    assert len(digests) == 3


def test_scenes_hold_everything_that_can_be_said() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert Counter(len(scene.things) for scene in SCENES).keys() == {2, 3}
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    said = " ".join(caption for scene in SCENES for caption in scene_captions(scene))
    for words in (*RELATION_WORDS.values(), *SIZE_WORDS.values(), ("there is a", "there is an", "between", "with")):
        for word in words:
            assert f" {word} " in said


def test_scenes_are_clear() -> None:
    for scene in SCENES:
        for one, other in combinations(scene.things, 2):
            assert (one.shape, one.colour) != (other.shape, other.colour)
            kind = relation(one, other)
            assert relation(other, one) == (None if kind is None else OPPOSITE[kind])
            across, down = abs(one.x - other.x), abs(one.y - other.y)
            if kind is None:  # then as much beside as above
                assert 0.6 <= across / down <= 1 / 0.6
            if kind not in ("inside", "around"):
                assert np.hypot(across, down) > one.radius + other.radius
        for thing in scene.things:
            assert thing.radius < 7.01 if thing.size == "small" else thing.radius > 10.49
            assert thing.radius <= min(thing.x, thing.y, SIDE - thing.x, SIDE - thing.y)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((50, 30), "left"),
        ((50, 36.9), "left"),
        ((50, 37.1), None),
        ((10, 30), "right"),
        ((30, 50), "above"),
        ((23.1, 10), "below"),
        ((22.9, 10), None),
        ((39.5, 30), None),  # they touch
        ((50, 50), None),
    ],
)
def test_relation_is_stated_only_where_it_is_clear(place: tuple[float, float], expected: str | None) -> None:
    one = Thing("circle", "red", "small", 30, 30, 6)
    assert relation(one, Thing("star", "blue", "small", *place, 5)) == expected


def test_scene_captions_are_true_and_five_different_texts() -> None:
    for scene in SCENES:
        captions = scene_captions(scene)
        assert len(set(captions)) == CAPTIONS_PER_SCENE
        for caption in captions:
            assert describes(caption, scene), (caption, scene)
            assert normalise_caption(caption) == caption
            for thing in scene.things:
                assert f"{thing.colour} {thing.shape}" in caption


def test_scene_captions_of_three_things_tell_two_relations() -> None:
    """That one is left of both says little of a row; its captions are about the thing in the middle."""
    for captions in map(scene_captions, (replace(ROW, index=index) for index in range(20))):
        for caption in captions:
            assert re.match(r"(there is an?|an?|the) (small |little )?orange star ", caption)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (PAIR, "a red circle left of a blue square"),
        (PAIR, "a little red circle to the left of a blue square"),
        (PAIR, "the large blue square is to the right of the small red circle"),
        (PAIR, "a big blue square with a red circle left of it"),
        (NESTED, "an orange star inside a green circle"),
        (NESTED, "there is a large green circle around a little orange star"),
        (NESTED, "a green circle with a small orange star within it"),
        (ROW, "a small orange star between a green heart and a pink heart"),
        (ROW, "the orange star is under the pink heart and above the big green heart"),
        (ROW, "a pink heart over a large green heart"),  # true, if not all
        (CORNER, "there is a purple cross left of a yellow cross and over a yellow star"),
    ],
)
def test_true_caption_describes_its_scene(scene: Scene, caption: str) -> None:
    assert describes(caption, scene)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (PAIR, "a blue circle left of a red square"),  # colours swapped
        (PAIR, "a red square left of a blue circle"),  # shapes swapped
        (PAIR, "a large red circle left of a small blue square"),  # sizes swapped
        (PAIR, "a red circle left of a small blue square"),
        (PAIR, "a blue square left of a red circle"),  # things swapped
        (PAIR, "a red circle right of a blue square"),
        (PAIR, "a red circle above a blue square"),
        (PAIR, "a red circle inside a blue square"),
        (PAIR, "a red circle with a blue square left of it"),
        (PAIR, "a red circle left of a red circle"),  # one thing twice
        (PAIR, "a red circle left of a blue square and left of a blue square"),
        (PAIR, "a red circle left of a blue square and above a green star"),  # one that is not there
        (PAIR, "a red circle between a blue square and a blue square"),
        (PAIR, "an red circle left of a blue square"),  # not of the grammar from here on
        (PAIR, "a circle left of a blue square"),
        (PAIR, "a red circle a blue square"),
        (PAIR, "a red circle"),
        (PAIR, ""),
        (PAIR, "a red circle left of a blue square a"),
        (PAIR, "A red circle left of a blue square"),
        (PAIR, "a red small circle left of a blue square"),
        (PAIR, "a red circle is left of a blue square"),
        (PAIR, "the red circle left of the blue square"),
        (PAIR, "a red  circle left of a blue square"),
        (PAIR, "a red circle to the left a blue square"),
        (NESTED, "a green circle inside an orange star"),
        (NESTED, "a orange star inside a green circle"),
        (NESTED, "an orange star left of a green circle"),
        (NESTED, "an orange star around a green circle"),
        (ROW, "a pink heart between a green heart and an orange star"),
        (ROW, "an orange star under a green heart and above a pink heart"),
        (ROW, "an orange star between a green heart and a green heart"),
        (CORNER, "a yellow cross between a purple cross and a yellow star"),
        (CORNER, "a purple cross between a yellow cross and a yellow star"),  # beside one, above the other
        (CORNER, "a yellow cross above a yellow star"),  # askew
        (CORNER, "a yellow cross right of a yellow star"),
        (CORNER, "a purple cross left of a yellow star and over a yellow cross"),
    ],
)
def test_false_caption_does_not_describe_its_scene(scene: Scene, caption: str) -> None:
    assert not describes(caption, scene)


def test_caption_is_false_once_any_word_of_it_is_changed() -> None:
    """Every word that says something is replaced by every other of its kind that means another thing."""
    sizes, relations = list(SIZE_WORDS.values()), list(RELATION_WORDS.values())
    kinds = [[(word,) for word in SHAPES], [(word,) for word in COLOURS], sizes, relations]
    for scene in SCENES[:60]:
        for caption in scene_captions(scene):
            tried = 0
            for groups in kinds:
                for group in groups:
                    for word in group:
                        for found in re.finditer(rf"\b{word}\b", caption):
                            for other in groups:
                                if other is not group:
                                    changed = caption[: found.start()] + other[0] + caption[found.end() :]
                                    assert not describes(re.sub(r"\ban? (?=\w)", _with_article, changed), scene)
                                    tried += 1
            assert tried > 20


def _with_article(found: re.Match[str]) -> str:
    return "an " if found.string[found.end()] in "aeiou" else "a "


def test_caption_of_another_scene_is_seldom_true() -> None:
    others = [scene_captions(scene)[0] for scene in SCENES]
    true = sum(describes(caption, scene) for scene, caption in zip(SCENES[1:], others, strict=False))
    assert true <= 1


def test_drawing_shows_each_thing_in_its_colour_at_its_place() -> None:
    centres: dict[str, list[tuple[int, ...]]] = {colour: [] for colour in COLOURS}
    for scene in SCENES:
        image = draw_scene(scene)
        assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
        for thing in scene.things:
            if not any(relation(other, thing) == "inside" for other in scene.things):
                box = tuple(round(at + step) for step in (-1, 2) for at in (thing.x, thing.y))
                centres[thing.colour].append(tuple(np.asarray(image.crop(box)).mean((0, 1)).astype(int)))
    means = {colour: np.mean(seen, axis=0) for colour, seen in centres.items()}
    for colour, seen in centres.items():  # a nearest mean tells them apart
        for pixel in seen:
            nearest = min(COLOURS, key=lambda name: float(np.linalg.norm(means[name] - np.array(pixel))))
            assert nearest == colour


def test_drawing_fills_as_much_as_the_radius_says() -> None:
    """Drawn on their own ground with and without a thing, two pictures differ just where the thing is."""
    for shape in SHAPES:
        large = Scene(9, 1, (Thing(shape, "red", "large", 32.0, 32.0, 12.0),))
        empty = replace(large, things=())
        differs = np.abs(np.asarray(draw_scene(large), int) - np.asarray(draw_scene(empty), int)).max(2) > 60
        rows, columns = np.nonzero(differs)
        for extent in (rows, columns):
            assert 20 <= np.ptp(extent) + 1 <= 29
            assert 28 <= extent.mean() <= 36


def test_drawing_stands_upright() -> None:
    """A triangle is broader below its middle, a heart above it."""
    for shape, broader in (("triangle", np.greater), ("heart", np.less)):
        things = (Thing(shape, "red", "large", 32.0, 32.0, 12.0),)
        for index in range(20):
            scene = Scene(9, index, things)
            empty = np.asarray(draw_scene(replace(scene, things=())), int)
            covered = np.abs(np.asarray(draw_scene(scene), int) - empty).max(2) > 60
            assert broader(covered[34:40].sum(), covered[24:30].sum())


def test_encoded_scene_reaches_a_network_as_the_drawn_one_does() -> None:
    """A service is sent the PNG, training preprocesses the drawing: the same numbers."""
    preprocessing = Preprocessing(width=SIDE, height=SIDE, mean=(127.5,) * 3, deviation=(127.5,) * 3)
    content = encode_scene(SCENES[0])
    assert Image.open(io.BytesIO(content)).format == "PNG"
    np.testing.assert_array_equal(preprocessing.apply(read_image(content)), preprocessing.apply(draw_scene(SCENES[0])))
