"""The prefix cache against a dictionary of all that was ever put, and against what Python says it takes."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.service.prefixes.cache import MAX_DENSE, NODE_BYTES, STRIDE, PrefixCache, Scope

SCOPE = Scope("digest", "tenant", None)
PLENTY = 1 << 30


WIDE = Scope("other", "tenant", None)
"""Its prompts are rows of three float32 and a bool, in which a byte of the id is the last of three."""


def ids_of(ids, scope=SCOPE):
    if scope != WIDE:
        return np.array(ids, np.int64)
    rows = np.zeros((len(ids), 13), np.uint8)
    rows[:, 9] = ids
    return rows.view("V13")[:, 0]


def state_of(scope, ids, size=3):
    """A state that tells where it belongs."""
    number = np.float32(hash((scope, tuple(ids))) % 9973)
    return {"state.h": np.full(size, number), "state.c": np.full((2, size), number)}


def put(cache, ids, scope=SCOPE, size=3):
    cache.put(scope, ids_of(ids, scope), state_of(scope, ids, size))


def held(cache, ids, scope=SCOPE):
    """How much of a prompt is held; the state is looked at, too."""
    match = cache.find(scope, ids_of(ids, scope))
    if match.length == 0:
        assert match.state is None
    else:
        expected = state_of(scope, ids[: match.length])
        assert all((match.state[name] == row).all() for name, row in expected.items())
    assert match.length <= match.known <= max(0, len(ids) - 1)
    return match.length


class Slow:
    """What a cache should answer, by trying everything; the last put or found comes last."""

    def __init__(self):
        self.entries: dict[tuple, None] = {}

    def put(self, scope, ids):
        self.entries.pop((scope, ids), None)
        self.entries[scope, ids] = None

    def find(self, scope, ids):
        for length in range(len(ids) - 1, 0, -1):
            if (scope, ids[:length]) in self.entries:
                self.put(scope, ids[:length])
                return length
        return 0

    def known(self, scope, ids):
        return max(
            (shared(ids[:-1], other) for where, other in self.entries if where == scope),
            default=0,
        )


def shared(one, other):
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
scopes = st.sampled_from([SCOPE, Scope("digest", "tenant", "salt"), WIDE])
actions = st.lists(st.tuples(st.sampled_from(["put", "put", "find"]), scopes, prompts), max_size=60)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_find_is_what_trying_everything_finds(actions):
    cache, slow = PrefixCache(PLENTY), Slow()
    for verb, scope, ids in actions:
        if verb == "put":
            put(cache, ids, scope)
            slow.put(scope, ids)
        else:
            assert cache.find(scope, ids_of(ids, scope)).known == slow.known(scope, ids)
            assert held(cache, ids, scope) == slow.find(scope, ids)
    assert len(cache) == len(slow.entries)


@settings(max_examples=300, deadline=None)
@given(actions, st.integers(8, 40))
def test_bound_holds_and_the_least_recently_used_go(actions, nodes):
    cache, slow = PrefixCache(nodes * NODE_BYTES), Slow()
    for verb, scope, ids in actions:
        if verb == "put":
            put(cache, ids, scope)
            slow.put(scope, ids)
            slow.entries = dict.fromkeys(list(slow.entries)[-len(cache) :])
        else:
            assert held(cache, ids, scope) == slow.find(scope, ids)
        assert 0 <= cache.bytes <= cache.max_bytes
    assert all(held(cache, (*ids, 0), scope) == len(ids) for scope, ids in slow.entries)
    fresh = PrefixCache(PLENTY)
    for scope, ids in slow.entries:
        put(fresh, ids, scope)
    assert cache.bytes == fresh.bytes  # nothing is left of those that went


@given(actions)
def test_drop_forgets_a_model_and_no_other(actions):
    cache, slow = PrefixCache(PLENTY), Slow()
    for _, scope, ids in actions:
        put(cache, ids, scope)
        slow.put(scope, ids)
    cache.drop("digest")
    for scope, ids in slow.entries:
        assert held(cache, (*ids, 0), scope) == (0 if scope.model == "digest" else len(ids))
    cache.drop("other")
    assert (len(cache), cache.bytes) == (0, 0)
    assert not cache._roots


def test_last_id_of_a_prompt_is_never_held():
    cache = PrefixCache(PLENTY)
    put(cache, [5, 6, 7])
    assert held(cache, [5, 6, 7]) == 0
    assert held(cache, [5, 6, 7, 8]) == 3
    put(cache, [5, 6])
    assert held(cache, [5, 6, 7]) == 2


def test_find_tells_where_prompts_part():
    cache = PrefixCache(PLENTY)
    put(cache, [1, 2, 3, 4, 5, 6])
    match = cache.find(SCOPE, ids_of([1, 2, 3, 9, 9]))
    assert (match.length, match.known) == (0, 3)
    put(cache, [1, 2, 3])
    match = cache.find(SCOPE, ids_of([1, 2, 3, 4, 9]))
    assert (match.length, match.known) == (3, 4)


@pytest.mark.parametrize(
    "other",
    [
        Scope("digest", "tenant", "salt"),
        Scope("digest", "tenant", ""),
        Scope("digest", "else", None),
        Scope("a", "b", None),
    ],
)
def test_scopes_never_meet(other):
    cache = PrefixCache(PLENTY)
    put(cache, [1, 2, 3, 4])
    match = cache.find(other, ids_of([1, 2, 3, 4, 5]))
    assert (match.length, match.state, match.known) == (0, None, 0)


def test_text_that_grows_keeps_its_last_states_and_some_before_them():
    cache, text, other = PrefixCache(PLENTY), list(range(3000)), [*range(700), 9]
    for length in range(1, 1000):
        put(cache, text[:length])
    put(cache, other)  # who parts in the middle parts with nothing
    for length in range(1000, 3000):
        put(cache, text[:length])
    assert len(cache) < MAX_DENSE + 2 * 3000 // STRIDE
    for length in range(1, 3001):
        assert length - 1 - held(cache, text[:length]) <= (0 if length > 3000 - MAX_DENSE else STRIDE)
    assert held(cache, [*other, 9]) == len(other)


def test_entry_larger_than_the_bound_is_not_kept_and_drives_nobody_out():
    cache = PrefixCache(20_000)
    put(cache, [1, 2, 3])
    put(cache, [1, 2, 4], size=10_000)
    put(cache, list(range(5000)))
    assert len(cache) == 1
    assert held(cache, [1, 2, 3, 4]) == 3


def test_nothing_is_kept_without_room():
    cache = PrefixCache(0)
    put(cache, [1, 2, 3])
    assert (len(cache), cache.bytes) == (0, 0)


def random_prompts(random):
    return [random.integers(0, 10_000, 17) for _ in range(1000)]


def long_prompts(random):
    return [random.integers(0, 10_000, 500) for _ in range(1000)]


def shared_beginnings(random):
    common = random.integers(0, 10_000, 64)
    return [np.concatenate([common[: random.integers(1, 64)], random.integers(0, 10_000, 30)]) for _ in range(1000)]


def growing_text(random):
    text = random.integers(0, 10_000, 4004)
    return [text[:length] for length in range(4, 4004, 4)]


@pytest.mark.parametrize("prompts", [random_prompts, long_prompts, shared_beginnings, growing_text])
def test_bytes_are_what_python_takes(prompts):
    scope, cases = Scope("digest", "tenant", None), prompts(np.random.default_rng(0))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = PrefixCache(PLENTY)
        for ids in cases:
            cache.put(scope, ids, {"state.h": np.zeros(8, np.float32), "state.c": np.zeros((2, 5), np.float32)})
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.95 * taken < cache.bytes < 1.35 * taken
    cache.drop("digest")
    assert cache.bytes == 0
