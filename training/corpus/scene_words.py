"""What is said of a scene: captions that are true of it, and whether a given caption is.

One grammar serves both. A caption names each thing by an article, a size or none, a colour and a shape, and says how
they stand to one another:

    a small red circle to the left of a big blue square          there is ...          the ... is ... the ...
    a big blue square with a small red circle to the left of it
    an orange star above a pink heart and right of a green cross
    a green cross between an orange star and a pink heart
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from random import Random

from carousel.training.corpus.scenes import COLOURS, OPPOSITE, SHAPES, Relation, Scene, Size, Thing, relation

CAPTIONS_PER_SCENE = 5

SIZE_WORDS: dict[Size, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within"),
    "around": ("around",),
}

_TEMPLATES = {
    # About two things: the first's relation to the second.
    2: ("{a} {r} {b}", "there is {a} {r} {b}", "{the_a} is {r} {the_b}", "{b} with {a} {r} it"),
    # About three: the first's relation to the second and to the third.
    3: ("{a} {r} {b} and {s} {c}", "there is {a} {r} {b} and {s} {c}", "{the_a} is {r} {the_b} and {s} {the_c}"),
}
_BETWEEN = ("{a} between {b} and {c}", "there is {a} between {b} and {c}", "{the_a} is between {the_b} and {the_c}")


def scene_captions(scene: Scene) -> tuple[str, ...]:
    """Captions that are true of a scene, all different and each of all its things. A function of the scene."""
    random = Random(f"captions {scene.seed} {scene.index}")
    facts = _facts(scene.things)
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS_PER_SCENE:
        things, relations = random.choice(facts)
        between = len(relations) == 2 and relations[0] == OPPOSITE[relations[1]]
        template = random.choice(_BETWEEN if between and random.random() < 0.5 else _TEMPLATES[len(things)])
        sized = random.random() < 0.7
        fields: dict[str, str] = {}
        for letter, thing in zip("abc", things, strict=False):
            noun = f"{thing.colour} {thing.shape}"
            if sized:
                noun = f"{random.choice(SIZE_WORDS[thing.size])} {noun}"
            fields |= {letter: f"{_article(noun)} {noun}", f"the_{letter}": f"the {noun}"}
        for letter, kind in zip("rs", relations, strict=False):
            fields[letter] = random.choice(RELATION_WORDS[kind])
        captions[template.format_map(fields)] = None
    return tuple(captions)


def describes(caption: str, scene: Scene) -> bool:
    """Whether a caption is one of the grammar and every word of it is true of the scene.

    It may leave out a size, or a third thing; what it names must be there, and stand as it says.
    """
    return any(_holds(said, scene.things) for pattern in _PATTERNS if (said := pattern.fullmatch(caption)) is not None)


def _facts(things: Sequence[Thing]) -> list[tuple[tuple[Thing, ...], tuple[Relation, ...]]]:
    """Each way to speak of all the things: one of them, then the rest, and its relations to those.

    Of three, the one that is spoken of must stand differently to the two others: that it is left of both says little.
    """
    facts = []
    for order in permutations(things):
        first, *rest = order
        relations = tuple(kind for other in rest if (kind := relation(first, other)) is not None)
        if len(relations) == len(rest) == len(set(relations)):
            facts.append((order, relations))
    return facts


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _holds(said: re.Match[str], things: Sequence[Thing]) -> bool:
    groups = said.groupdict()
    named = [_named(groups, letter, things) for letter in "abc" if f"{letter}_shape" in groups]
    if None in named or len(set(named)) < len(named):
        return False
    first, *rest = (thing for thing in named if thing is not None)
    kinds = [relation(first, other) for other in rest]
    if "r_words" not in groups:  # between
        return kinds[0] is not None and kinds[1] == OPPOSITE[kinds[0]]
    words = [groups[f"{letter}_words"] for letter in "rs" if f"{letter}_words" in groups]
    return all(kind is not None and word in RELATION_WORDS[kind] for kind, word in zip(kinds, words, strict=True))


def _named(groups: Mapping[str, str | None], letter: str, things: Sequence[Thing]) -> Thing | None:
    """The one thing that is meant, None where there is none."""
    article, size, colour, shape = (groups[f"{letter}_{part}"] for part in ("article", "size", "colour", "shape"))
    if article != "the" and article != _article(size or colour or ""):
        return None
    for thing in things:
        if (thing.colour, thing.shape) == (colour, shape) and (size is None or size in SIZE_WORDS[thing.size]):
            return thing
    return None


def _pattern(template: str) -> re.Pattern[str]:
    sizes = "|".join(word for words in SIZE_WORDS.values() for word in words)
    relations = "|".join(words for kind in RELATION_WORDS.values() for words in kind)
    fields = {}
    for letter in "abc":
        rest = (
            rf"(?:(?P<{letter}_size>{sizes}) )?"
            rf"(?P<{letter}_colour>{'|'.join(COLOURS)}) (?P<{letter}_shape>{'|'.join(SHAPES)})"
        )
        fields[letter] = rf"(?P<{letter}_article>an?) {rest}"
        fields[f"the_{letter}"] = rf"(?P<{letter}_article>the) {rest}"
    for letter in "rs":
        fields[letter] = rf"(?P<{letter}_words>{relations})"
    return re.compile(template.format_map(fields))


_PATTERNS = [_pattern(template) for template in (*_TEMPLATES[2], *_TEMPLATES[3], *_BETWEEN)]
