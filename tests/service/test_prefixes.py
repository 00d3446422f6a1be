"""Which states of a prompt are kept, and when a prompt is looked up at all."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.prefixes.cache import STRIDE, PrefixCache
from carousel.service.prefixes.prefixes import FROM_ZEROS, MAX_STRIDES, MIN_LENGTH, Prefixes

STATE_BYTES = 12


class Asked(list):
    """What was looked up: (tokens, cached)."""

    def __call__(self, tokens, cached):
        self.append((tokens, cached))


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def prefixes(asked):
    return Prefixes(PrefixCache(1 << 24), "digest", STATE_BYTES, asked)


def consume(prefixes, prompt, salt=None, *, state=lambda length: np.float32(length), upto=None):
    """Begin, consume without an engine, keep; how much was known."""
    prompt = np.array(prompt)
    beginning = prefixes.begin(prompt, salt)
    states = {
        length: {"state.h": np.full(3, state(length), np.float32)}
        for length in beginning.checkpoints
        if upto is None or length <= upto
    }
    beginning.keep(states)
    if beginning.length:
        assert (beginning.snapshot.state["state.h"] == state(beginning.length)).all()
    return beginning.length


def test_prompt_sent_again_is_known_but_for_its_last_id(prefixes, asked):
    assert consume(prefixes, range(50)) == 0
    assert consume(prefixes, range(50)) == 49
    assert consume(prefixes, range(51)) == 49
    assert consume(prefixes, range(51)) == 50
    assert asked == [(50, 0), (50, 49), (51, 49), (51, 50)]


def test_third_prompt_finds_where_the_first_two_parted(prefixes):
    assert consume(prefixes, [*range(30), 100, 101, 102]) == 0
    assert consume(prefixes, [*range(30), 200]) == 0
    assert consume(prefixes, [*range(30), 300]) == 30


@pytest.mark.parametrize("length", [2 * STRIDE + 10, MAX_STRIDES * STRIDE + 1, 60_000])
def test_second_prompt_finds_most_of_a_long_beginning(prefixes, length):
    prompt = np.arange(length)
    assert len(prefixes.begin(prompt, None).checkpoints) <= MAX_STRIDES + 1
    consume(prefixes, prompt)
    prompt[-5:] = 7
    assert length - 5 - max(STRIDE, -(-length // MAX_STRIDES)) <= consume(prefixes, prompt) <= length - 5
    assert consume(prefixes, [*prompt[:-5], 8]) == length - 5


def test_short_prompt_is_neither_looked_up_nor_kept(prefixes, asked):
    for length in range(1, MIN_LENGTH + 1):
        assert prefixes.begin(np.arange(length), None) is FROM_ZEROS
    assert asked == []
    assert consume(prefixes, range(MIN_LENGTH + 1)) == 0
    assert consume(prefixes, range(MIN_LENGTH + 1)) == MIN_LENGTH
    assert consume(prefixes, [0, 1, 2, 9, 9, 9]) == 0
    assert all(at >= MIN_LENGTH for at in prefixes.begin(np.array([0, 1, 2, 8, 8, 8]), None).checkpoints)


def test_salts_and_models_never_meet(prefixes, asked):
    consume(prefixes, range(50), "mine")
    assert consume(prefixes, range(50)) == 0
    assert consume(prefixes, range(50), "yours") == 0
    other = Prefixes(prefixes._cache, "other digest", STATE_BYTES, asked)
    assert consume(other, range(50), "mine") == 0
    assert consume(prefixes, range(50), "mine") == 49
    prefixes.drop()
    assert consume(prefixes, range(50), "mine") == 0
    assert consume(other, range(50), "mine") == 49


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_state_that_is_not_finite_is_not_kept(prefixes, value):
    prompt = range(3 * STRIDE)
    consume(prefixes, prompt, state=lambda length: value if length > STRIDE else length)
    assert consume(prefixes, prompt) == STRIDE


def test_prompt_that_was_not_consumed_is_kept_as_far_as_it_was(prefixes):
    prompt = range(3 * STRIDE)
    consume(prefixes, prompt, upto=2 * STRIDE + 1)
    assert consume(prefixes, prompt) == 2 * STRIDE


def test_nothing_is_looked_up_without_room(asked):
    prefixes = Prefixes(PrefixCache(0), "digest", STATE_BYTES, asked)
    assert prefixes.begin(np.arange(100), None) is FROM_ZEROS
    assert asked == []


@pytest.mark.parametrize(("state_bytes", "strides"), [(12, 16), (2 << 20, 4), (8 << 20, 1), (9 << 20, 0)])
def test_checkpoints_on_the_way_take_no_more_than_a_part_of_the_cache(asked, state_bytes, strides):
    prefixes = Prefixes(PrefixCache(64 << 20), "digest", state_bytes, asked)
    prompt = np.arange(40 * STRIDE)
    checkpoints = prefixes.begin(prompt, None).checkpoints
    assert checkpoints[-1] == len(prompt) - 1
    assert len(checkpoints) - 1 in (strides, strides - 1)
    assert all(at % STRIDE == 0 or at == checkpoints[-1] for at in checkpoints) or strides
    assert state_bytes * (len(checkpoints) - 1) <= (64 << 20) // 8


def test_state_larger_than_the_cache_is_not_even_looked_for(asked):
    prefixes = Prefixes(PrefixCache(1 << 20), "digest", 2 << 20, asked)
    assert prefixes.begin(np.arange(1000), None) is FROM_ZEROS
    assert asked == []
