"""How long a thread may keep the interpreter's lock, by whether anybody reads token by token."""

from __future__ import annotations

import sys

import pytest

from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import Ended, Told
from carousel.service.engine.streams.lock_turns import LONG_SECONDS, SHORT_SECONDS, LockTurns
from carousel.service.engine.streams.token_stream import TokenStream


@pytest.fixture(autouse=True)
def interval():
    """As it was before."""
    seconds = sys.getswitchinterval()
    sys.setswitchinterval(LONG_SECONDS)
    yield
    sys.setswitchinterval(seconds)


@pytest.fixture
def turns(monkeypatch):
    turns = LockTurns()
    monkeypatch.setattr("carousel.service.engine.streams.token_stream.LOCK_TURNS", turns)
    return turns


def assert_interval(seconds):
    assert sys.getswitchinterval() == pytest.approx(seconds)


def test_lock_turns_are_short_until_the_last_reader_is_gone():
    turns = LockTurns()
    turns.enter()
    turns.enter()
    assert_interval(SHORT_SECONDS)
    turns.leave()
    assert_interval(SHORT_SECONDS)
    turns.leave()
    assert_interval(LONG_SECONDS)


def test_lock_turns_are_short_until_a_stream_ends_once(turns):
    first, second = (TokenStream(0, lambda: None) for _ in range(2))
    assert_interval(SHORT_SECONDS)
    first.put(Told(3, -0.5))
    for _ in range(2):
        first.put(Ended(FinishReason.STOP))
    assert_interval(SHORT_SECONDS)
    second.put(Ended(FinishReason.CANCELLED))
    assert_interval(LONG_SECONDS)


def test_lock_turns_are_short_until_a_slow_reader_is_given_up(turns):
    stream = TokenStream(0, lambda: None, max_events=1)
    stream.put(Told(3, -0.5))
    assert_interval(SHORT_SECONDS)
    stream.put(Told(4, -0.5))
    assert stream.finished
    assert_interval(LONG_SECONDS)


def test_lock_turns_stay_long_where_all_is_told_at_the_end(turns):
    stream = TokenStream(0, lambda: None, silent=True)
    assert_interval(LONG_SECONDS)
    stream.put(Ended(FinishReason.STOP))
    assert_interval(LONG_SECONDS)
    TokenStream(0, lambda: None)
    assert_interval(SHORT_SECONDS)
