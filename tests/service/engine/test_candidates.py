"""Candidates against whole rows put in order."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.sampling.candidates import Candidates, bounds_of_largest, largest


def rows_of(*deviations, size):
    rng = np.random.default_rng(size)
    return (rng.standard_normal((len(deviations), size)) * np.array(deviations)[:, None]).astype(np.float32)


@pytest.mark.parametrize("size", [1, 5, 31, 1023, 1024, 1055, 1056, 5000, 10_000])
@pytest.mark.parametrize("counts", [[1, 2, 3], [5, 40, 1], [700, 1, 40], [9999, 512, 16]])
def test_bound_is_reached_by_as_many_and_not_many_more(size, counts):
    values = rows_of(1.0, 0.0, 9.0, size=size)
    asked = np.minimum(counts, size)
    bounds = bounds_of_largest(values, asked)
    for row, count, bound in zip(values, asked, bounds, strict=True):
        reached = int((row >= bound).sum())
        assert reached >= count
        if row.std() > 0:
            assert reached <= max(2 * count, count + 16)


@pytest.mark.parametrize("size", [3, 300, 4000])
def test_largest_are_in_order_and_ties_by_id(size):
    values = np.round(rows_of(1.0, 2.0, 0.0, size=size), 1)
    values[1, : size // 2] = -np.inf
    counts = np.minimum([5, 40, 3], size)
    tokens, found = largest(values, counts)
    for row, count, some, told in zip(values, counts, tokens, found, strict=True):
        possible = np.flatnonzero(row > -np.inf)
        expected = possible[np.argsort(-row[possible], kind="stable")][:count]
        assert some[: len(expected)].tolist() == expected.tolist()
        assert told[: len(expected)].tolist() == row[expected].tolist()
        assert (told[len(expected) : count] == -np.inf).all()


def test_candidates_spread_and_name_their_tokens():
    chosen = np.zeros((3, 7), np.bool_)
    chosen[0, [1, 6]] = chosen[2, [0, 3, 5]] = True
    values = np.arange(21, dtype=np.float32).reshape(3, 7)
    found = Candidates(chosen)
    assert found.spread(found.of(values), -1.0).tolist() == [[1, 6, -1], [-1, -1, -1], [14, 17, 19]]
    assert found.tokens(np.array([1, 0, 2]))[[0, 2]].tolist() == [6, 5]
    named = found.tokens(np.array([[0, 1, 2]] * 3))
    assert (named[0, :2].tolist(), named[2].tolist()) == ([1, 6], [0, 3, 5])
    assert ((named >= 0) & (named < 7)).all()


def test_nothing_chosen_is_no_error():
    found = Candidates(np.zeros((2, 4), np.bool_))
    assert found.spread(found.of(np.zeros((2, 4), np.float32)), 0.0).tolist() == [[0.0], [0.0]]
    assert found.tokens(np.array([0, 3])).tolist() == [0, 0]
