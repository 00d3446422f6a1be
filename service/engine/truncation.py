"""Top-k, top-p and min-p: which of a row's weights are removed.

Each of the three keeps what is not below a threshold weight, so ties are kept together and the outcome cannot depend on
the order in which equal weights were sorted.

Axes: b rows of a block, r truncated ones of them, V weights of each, C the largest of them, K buckets of weights.
"""

from __future__ import annotations

import numpy as np

from service.engine.draw import BUCKET
from service.engine.plan import Doubles, Mask, Rows, Truncation
from service.engine.sequence import Floats, Ids

CANDIDATES = 1024
"""The largest weights of a row, which are put in order to see where top-p ends. Where they are not enough, all are."""

ALL_SORTED = 64
"""So many times all weights are sorted at once, after the candidates were too few for most rows."""


class Truncator:
    """Removes weights. What it remembers of earlier rows is how best to find a threshold, and changes none."""

    def __init__(self) -> None:
        self._sort_all = 0

    def truncate(self, weights: Floats, truncation: Truncation) -> None:
        """Set to zero, in place, the weights <float32>[b, V] that top-k, top-p or min-p remove."""
        rows = truncation.rows
        if len(rows) == len(weights):
            np.multiply(weights, weights >= self._thresholds(weights, truncation)[:, None], out=weights)
        else:
            part = weights[rows]
            weights[rows] = part * (part >= self._thresholds(part, truncation)[:, None])

    def _thresholds(self, weights: Floats, truncation: Truncation) -> Floats:
        """The smallest weight that is kept in each row of `weights`, which are the truncated ones. <float32>[r]"""
        top_k, top_p, size = truncation.top_k, truncation.top_p, weights.shape[1]
        threshold = truncation.min_p * weights.max(axis=1)
        places = np.flatnonzero((top_k > 0) & (top_p == 1.0))
        if len(places):
            kth = size - top_k[places]
            part = weights if len(places) == len(weights) else weights[places]
            ordered = np.partition(part, np.unique(kth), axis=1)
            threshold[places] = np.maximum(threshold[places], ordered[np.arange(len(places)), kth])
        places = np.flatnonzero(top_p < 1.0)
        if len(places):
            part = weights if len(places) == len(weights) else weights[places]
            nucleus = self._nucleus(part, top_k[places], top_p[places])
            threshold[places] = np.maximum(threshold[places], nucleus)
        return np.asarray(threshold, np.float32)

    def _nucleus(self, weights: Floats, top_k: Ids, top_p: Doubles) -> Floats:
        """The smallest weight that top-k, then top-p, keep in each row. <float32>[r]

        To single out the largest weights is quicker than to sort all; it is of no use where a model is so unsure that
        top-p keeps more than those.
        """
        size, totals = weights.shape[1], bucket_sums(weights)[:, -1]
        if size <= 2 * CANDIDATES or self._sort_all:
            self._sort_all = max(0, self._sort_all - 1)
            return _reach(_descending(weights), top_k, top_p, totals)[0]
        candidates = np.partition(weights, size - CANDIDATES, axis=1)[:, -CANDIDATES:]
        threshold, certain = _reach(_descending(candidates), top_k, top_p, totals)
        rows = np.flatnonzero(~certain)
        if len(rows):
            threshold[rows] = _reach(_descending(weights[rows]), top_k[rows], top_p[rows], totals[rows])[0]
            self._sort_all = ALL_SORTED if 2 * len(rows) > len(weights) else 0
        return threshold


def bucket_sums(weights: Floats) -> Doubles:
    """Running sum over the buckets of each row: entry j sums weights[:(j + 1) * BUCKET]. <float64>[b, K]"""
    whole, rest = _buckets(weights)
    count = whole.shape[1]
    sums = np.empty((len(weights), count + (rest.shape[1] > 0)), np.float32)
    # Not sum(), which is slow over a last axis this short.
    np.einsum("bij->bi", whole, out=sums[:, :count])
    if rest.shape[1]:
        np.einsum("bi->b", rest, out=sums[:, count])
    return sums.cumsum(axis=1, dtype=np.float64)


def _reach(ordered: Floats, top_k: Ids, top_p: Doubles, totals: Doubles) -> tuple[Floats, Mask]:
    """The smallest weight that top-k, then top-p, keep in each row, and whether its other weights change nothing of it.

    Args:
        ordered: the largest weights of each row, or all. <float32>[r, C], descending
        top_k: 0 where all are kept. <int64>[r]
        top_p: <float64>[r]
        totals: the sum of all weights of the row. <float64>[r]

    Returns:
        <float32>[r], <bool>[r]
    """
    each, limited, last = np.arange(len(ordered)), top_k > 0, ordered[:, -1]
    kth = np.where(limited, ordered[each, np.minimum(top_k, ordered.shape[1]) - 1], np.float32(0.0))
    kept = ordered * (ordered >= kth[:, None])
    sums = bucket_sums(kept)
    goal = top_p * np.where(limited, sums[:, -1], totals)
    reached = kept[each, _first_reaching(kept, sums, goal, each)]
    certain = np.where(limited, last < kth, sums[:, -1] >= goal)  # of ties with the k-th, some may be left out
    return np.asarray(np.maximum(kth, reached), np.float32), certain


def _descending(weights: Floats) -> Floats:
    """The weights of each row in order, the largest first."""
    ordered: Floats = -np.sort(-weights, axis=1)
    return ordered


def _buckets(weights: Floats) -> tuple[Floats, Floats]:
    """Views of the whole buckets of each row, and of what is over. <float32>[b, -1, BUCKET], <float32>[b, < BUCKET]"""
    b, size = weights.shape
    whole = size - size % BUCKET
    return weights[:, :whole].reshape(b, -1, BUCKET), weights[:, whole:]


def _first_reaching(weights: Floats, sums: Doubles, goal: Doubles, each: Rows) -> Ids:
    """The first place of each row at which the running sum of weights reaches the goal.

    Args:
        weights: not negative. <float32>[b, V]
        sums: their bucket sums. <float64>[b, K]
        goal: <float64>[b]
        each: 0 to b - 1. <intp>[b]
    """
    goals = goal[:, None]
    bucket: Ids = (sums < goals).sum(axis=1)  # [b]
    bucket = np.minimum(bucket, sums.shape[1] - 1)
    inside = _bucket(weights, bucket, each)  # [b, BUCKET]
    running = inside.cumsum(axis=1, dtype=np.float64)
    running += np.where(bucket > 0, sums[each, bucket - 1], 0.0)[:, None]
    place: Ids = (running < goals).sum(axis=1)
    if place.max() == BUCKET:
        # Rounding left the goal just out of reach: then the last place with weight in the bucket is the one.
        place = np.minimum(place, BUCKET - 1 - (inside[:, ::-1] > 0).argmax(axis=1))
    first: Ids = np.minimum(bucket * BUCKET + place, weights.shape[1] - 1)  # rows of NaN may end anywhere
    return first


def _bucket(weights: Floats, bucket: Ids, each: Rows) -> Floats:
    """A copy of one bucket of each row, filled up with zeros. <float32>[b, BUCKET]"""
    whole, rest = _buckets(weights)
    count, over = whole.shape[1], rest.shape[1]
    if not over or bucket.max() < count:
        return np.asarray(whole[each, bucket])
    inside = np.zeros((len(weights), BUCKET), np.float32)
    early = np.flatnonzero(bucket < count)
    inside[early] = whole[early, bucket[early]]
    late = np.flatnonzero(bucket == count)
    inside[late, :over] = rest[late]
    return inside
