"""Large JSON in slices: the same values and the same errors as in one piece, and nobody waits long for the lock."""

from __future__ import annotations

import base64
import gc
import json
import random
import sys
import threading
import time
from typing import Annotated

import hypothesis
import pytest
from hypothesis import strategies
from pydantic import Field, TypeAdapter, ValidationError, WrapValidator

from carousel.service.api.wire import frames, lists, slices
from carousel.service.tasks.tracing.messages import Attempt, TraceBody

ATTEMPTS = [{"skill": place % 22, "correct": place % 3 == 0} for place in range(130_000)]

VALUES = {
    "attempts": {"attempts": ATTEMPTS},
    "learners": {"learners": [{"id": place, "attempts": ATTEMPTS[:700]} for place in range(150)]},
    "ids": {"tokens": list(range(400_000))},
    "texts": {"prompt": ["ab,] }"] * 100_000},
    "escaped": {"text": '日本\u2028\U0001f600\\" ' * 40_000},
    "image": {"image": base64.b64encode(random.Random(0).randbytes(9_000_000)).decode()},
    "nested": {"a": [[[[{"b": [1.5, None, True, "x" * 40_000]}]]]] * 30},
    "short": {"": [], "a": {}, "b": [[], {}], "c": -1e-9},
}


@pytest.fixture
def short_slices(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 40)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_value_is_that_of_one_piece(name, indent, ascii_only):
    text = json.dumps(VALUES[name], indent=indent, ensure_ascii=ascii_only)
    assert slices.loads(text.encode()) == VALUES[name]
    assert slices.loads(text.replace("/", "\\/")) == VALUES[name]


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.floats(allow_nan=False) | strategies.integers()
    | strategies.text() | strategies.text('\\"ud83dDEe0,]}[{:/n'),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    max_leaves=60,
)  # fmt: skip


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(JSON, strategies.booleans())
def test_any_value_is_that_of_one_piece(short_slices, value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert slices.loads(text) == value
    assert slices.dumps(value) == frames.dumps(value)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(JSON, strategies.data())
def test_what_one_piece_refuses_is_refused(short_slices, value, data):
    text = json.dumps(value)
    at = data.draw(strategies.integers(0, len(text)))
    text = (
        text[:at]
        + data.draw(strategies.sampled_from(["", ",", "]", "}", "{", '"', "\\", "\n", "\x00", "1", ":"]))
        + text[at + 1 :]
    )
    try:
        expected = json.loads(text)
    except ValueError as error:
        with pytest.raises(type(error)):
            slices.loads(text)
    else:
        assert slices.loads(text) == expected


@pytest.mark.parametrize(
    "text", ['{"a": 1', "[1, 2", '["a', '{"a" 1}', "[1 2]", "{1: 2}", "nul", "", "[1]x", "[1,]", "\ufeff1"]
)
def test_malformed_text_has_the_message_of_one_piece(text):
    padded = text.replace(" ", " " * 40_000)
    messages = []
    for loads in (json.loads, slices.loads):
        with pytest.raises(ValueError) as refused:
            loads(padded)
        messages.append(refused.value.msg)
    assert "BOM" in messages[0] or messages[0] == messages[1]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_depth_is_bounded(text):
    with pytest.raises((RecursionError, ValueError)):
        slices.loads(text)


def test_surrogate_pair_is_never_cut(short_slices):
    for shift in range(60):
        text = json.dumps("x" * shift + "\U0001f600" * 50)
        assert slices.loads(text) == json.loads(text)
        lone = '"' + "x" * shift + "\\ud83d\\\\ud83d" * 20 + '"'
        assert slices.loads(lone) == json.loads(lone)


def test_list_is_validated_in_slices_with_the_errors_of_one_piece():
    whole = TypeAdapter(Annotated[list[Attempt], Field(fail_fast=True)])
    sliced = TypeAdapter(Annotated[list[Attempt], Field(fail_fast=True), WrapValidator(lists.in_slices)])
    assert sliced.validate_python(ATTEMPTS[:5_000]) == ATTEMPTS[:5_000]
    for wrong in ({"skill": 1}, {"skill": 1.5, "correct": True}, {"skill": 1, "correct": True, "x": 1}, 7):
        found = []
        for adapter in (whole, sliced):
            with pytest.raises(ValidationError) as refused:
                adapter.validate_python([*ATTEMPTS[:4_321], wrong])
            found.append([(error["type"], error["loc"], error["msg"]) for error in refused.value.errors()])
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "text",
    [
        '{"attempts":[' + ",".join(["[]"] * 1_000_000) + "]}",
        '{"attempts":[' + ",".join(['{"a":{}}'] * 400_000) + "]}",
        '{"attempts":[' + ",".join(["[[]]"] * 100_000) + "]}",
        "{" + ",".join(f'"{place}":[]' for place in range(100_000)) + "}",
        json.dumps([{"a": [[1]] * 9_000}] * 3),
        "[" * 100 + ",".join(["[]"] * 100_000) + "]" * 100,
    ],
    ids=["lists", "objects", "lists of one", "values", "long", "deep"],
)
def test_lists_are_bounded_in_number(text):
    """The search for garbage stops every thread for as long as there are lists to look at."""
    began, at = time.perf_counter(), len(gc.get_objects())
    with pytest.raises(slices.TooManyLists, match="more than 20,000 lists"):
        slices.loads(text)
    assert len(gc.get_objects()) - at < 1_000
    assert time.perf_counter() - began < 5


def test_brackets_in_texts_are_no_lists():
    value = {"prompt": ["[{" * 100_000], "skills": ["[1] {x}"] * 100_000, "attempts": ATTEMPTS}
    assert slices.loads(json.dumps(value)) == value


def longest_gap(work):
    """How long another thread waits for the interpreter's lock, at most, while this work is done; seconds."""
    worst, over = 0.0, threading.Event()

    def pulse():
        nonlocal worst
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.0002)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now

    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        work()
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    return worst


@pytest.mark.parametrize("name", ["attempts", "learners", "ids", "texts", "escaped"])
def test_other_threads_have_their_turn(name):
    content = json.dumps(VALUES[name]).encode()
    one_piece = min(longest_gap(lambda: json.loads(content)) for _ in range(5))
    sliced = min(longest_gap(lambda: slices.loads(content)) for _ in range(5))
    assert sliced < max(0.5 * one_piece, 0.015)


def test_other_threads_have_their_turn_while_attempts_are_validated():
    adapter, value = TypeAdapter(TraceBody), VALUES["attempts"]
    assert min(longest_gap(lambda: adapter.validate_python(value)) for _ in range(5)) < 0.025
