"""The few tokens of each row that can matter, taken out of the many: what truncated sampling, and whoever asks for the
most probable tokens, work on.

Axes: r rows, V vocabulary, G groups of it, C candidates of the row that has most.
"""

from __future__ import annotations

import numpy as np

from carousel.service.engine.parameters import Floats, Ids
from carousel.service.engine.rows.plan import Mask, Rows

GROUPS = 512
"""Groups at most, where that is twice as many as the tokens that are asked for: numpy puts so few in order at once."""

LEAST = np.finfo(np.float32).min
"""No logit of a possible token is below."""


class Candidates:
    """Some tokens of each row, one after another in the order of their ids, the rows one after another.

    Args:
        chosen: which tokens of each row. <bool>[r, V]
    """

    def __init__(self, chosen: Mask) -> None:
        r, self._size = chosen.shape
        self.flat: Rows = np.flatnonzero(chosen)
        """Where in all rows each lies. <intp>[n]"""
        ends = self.flat.searchsorted(np.arange(1, r + 1) * self._size)
        self._starts = np.zeros_like(ends)
        self._starts[1:] = ends[:-1]
        self.counts: Rows = ends - self._starts
        """How many each row has. <intp>[r]"""

    def of(self, values: Floats) -> Floats:
        """What each candidate has of `values` <float32>[r, V]. <float32>[n]"""
        return values.reshape(-1)[self.flat]

    def spread(self, values: Floats, fill: float) -> Floats:
        """`values`, one of each candidate, as rows filled up to the longest. <float32>[r, C]"""
        width = max(1, int(self.counts.max()))
        rows = np.full((len(self.counts), width), fill, np.float32)
        rows[np.arange(width) < self.counts[:, None]] = values
        return rows

    def tokens(self, places: Ids) -> Ids:
        """The tokens at some places of each row of what was spread; some token where there is none. <int64>[r, ...]"""
        if not len(self.flat):
            return np.zeros_like(places)
        flat = self._starts.reshape(-1, *[1] * (places.ndim - 1)) + places
        return np.asarray(self.flat.take(flat, mode="clip") % self._size)


def bounds_of_largest(values: Floats, counts: Ids) -> Floats:
    """A bound for each row that at least `counts` of its values reach, and not many more. <float32>[r]

    It is the counts-th largest of the groups' maxima, of which there are at least twice as many: so many groups have a
    value that reaches it. Where groups would be of one token, it is that value itself. NaN where a row has NaN.

    Args:
        values: <float32>[r, V]
        counts: each from 1 to V. <int64>[r]
    """
    r, size = values.shape
    members, groups = grouping(size, int(counts.max()))
    part = values
    if members > 1:  # group g has g, g + G, g + 2 G, ...; a few tokens at the end are in none
        part = np.maximum.reduce(values[:, : members * groups].reshape(r, members, groups), axis=1)
    return np.asarray(np.sort(part, axis=1)[np.arange(r), groups - counts])


def grouping(size: int, count: int) -> tuple[int, int]:
    """Of so many tokens, how many make a group, and how many groups there are: enough to bound the `count` largest."""
    members = max(1, min(-(-size // GROUPS), size // (2 * count)))
    return members, size // members


def largest(values: Floats, counts: Ids) -> tuple[Ids, Floats]:
    """The tokens with the `counts` largest values of each row, the largest first, ties by id.

    Args:
        values: <float32>[r, V]
        counts: each from 1 to V. <int64>[r]

    Returns:
        Tokens <int64>[r, m] and their values <float32>[r, m], m being at most max(counts); -inf where a row has fewer.
    """
    found = Candidates(values >= np.maximum(bounds_of_largest(values, counts), LEAST)[:, None])
    among = found.spread(found.of(values), -np.inf)
    order = np.argsort(-among, axis=1, kind="stable")[:, : int(counts.max())]
    return found.tokens(order), np.take_along_axis(among, order, axis=1)
