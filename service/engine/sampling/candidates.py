"""The few tokens of each row that can matter, taken out of the many: what truncated sampling, and whoever asks for the
most probable tokens, work on.

Axes: r rows, V vocabulary, G groups of it, C candidates of the row that has most.
"""

from __future__ import annotations

import numpy as np

from carousel.service.engine.rows.plan import Mask
from carousel.service.engine.sequence import Floats, Ids

GROUP = 32
"""Tokens of a group at most. Its largest value is cheap to have, and k groups hold k tokens that are as large."""

LEAST = np.finfo(np.float32).min
"""No logit of a possible token is below."""


class Candidates:
    """Some tokens of each row, one after another in the order of their ids, the rows one after another.

    Args:
        chosen: which tokens of each row. <bool>[r, V]
    """

    def __init__(self, chosen: Mask) -> None:
        r, self._size = chosen.shape
        self._flat = _places(chosen)
        ends = self._flat.searchsorted(np.arange(1, r + 1) * self._size)
        self._counts = np.diff(ends, prepend=0)
        self._starts = ends - self._counts

    def of(self, values: Floats) -> Floats:
        """What each candidate has of `values` <float32>[r, V]."""
        return values.reshape(-1)[self._flat]

    def spread(self, values: Floats, fill: float) -> Floats:
        """`values`, one of each candidate, as rows filled up to the longest. <float32>[r, C]"""
        width = max(1, int(self._counts.max()))
        spread = np.full((len(self._counts), width), fill, np.float32)
        spread[np.arange(width) < self._counts[:, None]] = values
        return spread

    def tokens(self, places: Ids) -> Ids:
        """The tokens at some places of each row of what was spread, 0 where there is none. <int64>[r, ...]"""
        along = (slice(None),) + (None,) * (places.ndim - 1)
        there = places < self._counts[along]
        if not len(self._flat):
            return np.zeros_like(places)
        flat = self._flat[np.where(there, self._starts[along] + places, 0)]
        return np.where(there, flat % self._size, 0)


def bounds_of_largest(values: Floats, counts: Ids) -> Floats:
    """A bound for each row that at least `counts` of its values reach, and not many more. <float32>[r]

    It is the counts-th largest of the groups' maxima, of which there are at least twice as many: so many groups have a
    value that reaches it. Where groups would be of one token, it is that value itself. NaN where a row has NaN.

    Args:
        values: <float32>[r, V]
        counts: each from 1 to V. <int64>[r]
    """
    size = values.shape[1]
    group = min(GROUP, size // (2 * int(counts.max())))
    part = _maxima(values, size // group) if group > 1 else values
    places = part.shape[1] - counts
    return np.asarray(np.partition(part, np.unique(places), axis=1)[np.arange(len(values)), places])


def largest(values: Floats, counts: Ids) -> tuple[Ids, Floats]:
    """The tokens with the `counts` largest values of each row, the largest first, ties by id.

    Args:
        values: <float32>[r, V]
        counts: each from 1 to V. <int64>[r]

    Returns:
        Tokens <int64>[r, m] and their values <float32>[r, m], m being at most max(counts); -inf where a row has fewer.
    """
    found = Candidates(values >= np.maximum(bounds_of_largest(values, counts), LEAST)[:, None])
    spread = found.spread(found.of(values), -np.inf)
    order = np.argsort(-spread, axis=1, kind="stable")[:, : int(counts.max())]
    return found.tokens(order), np.take_along_axis(spread, order, axis=1)


def _maxima(values: Floats, groups: int) -> Floats:
    """The largest value of each group. Group g is made of the tokens g, g + G, g + 2 G, ... <float32>[r, G]"""
    size = values.shape[1]
    whole = size - size % groups
    maxima: Floats = values[:, :whole].reshape(len(values), -1, groups).max(axis=1)
    rest = size - whole
    if rest:
        np.maximum(maxima[:, :rest], values[:, whole:], out=maxima[:, :rest])
    return maxima


def _places(chosen: Mask) -> Ids:
    """np.flatnonzero, in half of its time where a few of a hundred are true: words of eight are told apart first."""
    if chosen.size % 8 or not chosen.flags.c_contiguous:
        return np.flatnonzero(chosen)
    words = chosen.reshape(-1).view(np.uint64)
    some = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[some].view(np.bool_))
    return np.asarray((some << 3)[within >> 3] + (within & 7))
