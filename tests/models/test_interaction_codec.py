"""Attempts as ids: names and ids both lead to the same one, and what is no skill is refused in one sentence."""

from __future__ import annotations

import json

import pytest

from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import UnknownSkill

NAMES = ("addition", "Brüche", "12", "area & perimeter", " ")


def test_codec_numbers_each_attempt_once() -> None:
    codec = InteractionCodec(NAMES)
    assert (codec.skill_count, codec.interaction_count) == (5, 10)
    ids = [codec.encode(name, correct) for name in NAMES for correct in (False, True)]
    assert ids == list(range(10))
    assert [codec.decode(id_) for id_ in ids] == [(skill, correct) for skill in range(5) for correct in (False, True)]


def test_codec_takes_a_skill_by_name_or_by_position() -> None:
    codec = InteractionCodec(NAMES)
    assert codec.encode("Brüche", True) == codec.encode(1, True) == 3
    assert codec.skill_id("12") == 2  # a name, whatever it looks like
    assert codec.decode(5) == (2, True)


@pytest.mark.parametrize(
    ("skill", "id_"),
    [("addition ", 0), ("Bru\u0308che", 1), ("12.0", 2), ("perimeter & area", 3), ("area & perimeter\n", 3), (" ", 4)],
)
def test_codec_takes_a_skill_in_the_spellings_that_training_does(skill: str, id_: int) -> None:
    assert InteractionCodec(NAMES).skill_id(skill) == id_


def test_codec_reads_what_it_wrote() -> None:
    codec = InteractionCodec(NAMES)
    assert json.loads(codec.to_json()) == list(NAMES)
    assert InteractionCodec.from_json(codec.to_json()).skills == NAMES


@pytest.mark.parametrize("skill", ["subtraction", "", "ADDITION", "addition &", "0", 5, -1, True, 1.0, None, [1]])
def test_codec_refuses_a_skill_that_it_does_not_have(skill: object) -> None:
    message = r"^there is no skill .*; this model knows 5 skills, ids 0 to 4, the first called 'addition'$"
    with pytest.raises(UnknownSkill, match=message):
        InteractionCodec(NAMES).encode(skill, True)


def test_codec_does_not_repeat_a_name_of_any_length() -> None:
    with pytest.raises(UnknownSkill) as caught:
        InteractionCodec(NAMES).skill_id("x" * 1_000_000)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("attempt", [-1, 10])
def test_codec_refuses_an_id_out_of_range(attempt: int) -> None:
    with pytest.raises(ValueError, match=rf"^attempt is {attempt}; allowed are 0 to 9$"):
        InteractionCodec(NAMES).decode(attempt)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "holds a JSON dict; allowed is an array"),
        ("null", "holds a JSON NoneType"),
        ("[]", "the list of skills is empty"),
        ('["a", 3]', "skill 1 is 3; allowed is a name, a string"),
        ('["a", ""]', "the name of skill 1 has 0 characters; allowed are 1 to 500"),
        (json.dumps(["a", "x" * 501]), "the name of skill 1 has 501 characters"),
        ('["a", "b", "a"]', "skill 2 is called 'a', as skill 0 is; names are unique"),
        ('["\\ud800"]', "the name of skill 0 holds half of a surrogate pair"),
    ],
)
def test_codec_refuses_a_list_that_is_none(content: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        InteractionCodec.from_json(content)
