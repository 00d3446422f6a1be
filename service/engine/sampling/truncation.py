"""Top-k and top-p, and min-p beside one of them: a token is drawn from among those that they keep.

Each of the three keeps what is not below a threshold weight, so ties are kept together and the outcome cannot depend on
the order in which equal weights were sorted. Among what is kept, a token is found by inverse transform sampling: the
first, in the order of ids, at which the running sum exceeds the random number's share of the sum.

Axes: r truncated rows, V vocabulary, C candidates of a row, K buckets of weights.
"""

from __future__ import annotations

import math

import numpy as np

from carousel.service.engine.rows.plan import Doubles, LargestOnly, MassOnly
from carousel.service.engine.sampling.candidates import LEAST, Candidates, bounds_of_largest
from carousel.service.engine.sequence import Floats, Ids

ALMOST_ONE = 1.0 - 2.0**-52
"""A random number's share of a sum is less than the sum, however it is rounded."""

SPARSE = 8
"""Where fewer than one in so many tokens may be in the nucleus, they are taken out of the others first."""

CAUTION = 0.7
"""How much of the smallest threshold of the last rows is looked at this time."""

EXACT = 2.0**-29

AT_ONCE = 1 << 17
"""Weights that are worked on at a time where all of them must be: what is made of them stays in a core's cache."""

FIRST_BITS = 10
"""Of those that tell the weights of a row apart, at most so many are looked at first, of all weights."""
FEW = 256
"""So many weights of a bucket are simply put in order."""
BITS = 9
"""Of those that are left to tell the weights of a bucket apart, so many are looked at then."""


def draw_from_largest(logits: Floats, plan: LargestOnly, uniforms: Doubles) -> Ids:
    """A token of each row by the softmax of its tempered logits, truncated by top-k, then top-p, then min-p. <int64>[r]

    Args:
        logits: after penalties. <float32>[r, V]
        plan: the rows' parameters.
        uniforms: in [0, 1). <float64>[r]
    """
    bounds = np.maximum(bounds_of_largest(logits, plan.top_k), LEAST)
    found = Candidates(logits >= bounds[:, None])
    each = np.arange(len(logits))
    values = found.spread(found.of(logits), -np.inf)  # [r, C]
    weights: Doubles = np.exp((values - values.max(axis=1, keepdims=True)) * plan.inverse_temperature)
    places = np.maximum(weights.shape[1] - plan.top_k, 0)  # [r]
    if plan.top_p is None:
        threshold = np.partition(weights, np.unique(places), axis=1)[each, places]
    else:
        ordered = np.sort(weights, axis=1)
        threshold, ordered = ordered[each, places], ordered[:, ::-1]
        mass = np.where(ordered >= threshold[:, None], ordered, 0.0).cumsum(axis=1)
        reached = (mass < (plan.top_p * mass[:, -1])[:, None]).sum(axis=1)
        threshold = np.maximum(threshold, ordered[each, np.minimum(reached, ordered.shape[1] - 1)])
    if plan.min_p is not None:
        threshold = np.maximum(threshold, plan.min_p)  # the largest weight is 1
    weights[weights < threshold[:, None]] = 0.0
    return found.tokens(_place(weights, uniforms))


class MassTruncator:
    """Draws where top-p truncates, and top-k does not. It learns where to look for thresholds, which changes no result.

    Weights are float32 probabilities, taken as multiples of 2^-52: so sums of them are exact in float64, and do not
    depend on the order, or the parts, that they are summed in.
    """

    def __init__(self) -> None:
        self._cut = 0.0
        """A bit less than the smallest threshold of the last rows: what is below is seldom needed to find one."""

    def draw(self, weights: Floats, plan: MassOnly, uniforms: Doubles) -> Ids:
        """A token of each row by its weights, truncated by top-p, then min-p. <int64>[r]

        Args:
            weights: the softmax of each row; overwritten. <float32>[r, V]
            plan: the rows' parameters.
            uniforms: in [0, 1). <float64>[r]
        """
        size = weights.shape[1]
        # All that is below this, together, is not half of what top-p leaves out.
        least = ((1.0 - plan.top_p) / (2 * size)).astype(np.float32)  # [r]
        if plan.min_p is not None:
            least = np.fmax(least, plan.min_p * weights.max(axis=1))  # whatever rows of NaN have
        cut = np.maximum(least, np.float32(self._cut))
        chosen = weights >= cut[:, None]
        if SPARSE * np.count_nonzero(chosen) > weights.size:
            return self._draw_from_all(weights, least, plan.top_p, uniforms)
        found = Candidates(chosen)
        values = found.spread(found.of(weights), 0.0)  # [r, C]
        threshold = np.maximum(_nucleus(values, plan.top_p, cut), cut)
        # A threshold that lies above the cut was found; at the cut, it may lie below.
        certain = (threshold > cut) | (cut == least)
        self._learn(threshold[certain])
        np.multiply(values, values >= threshold[:, None], out=values)
        tokens = found.tokens(_place_in_two(_exact(values, threshold), uniforms))
        if not certain.all():
            rows = np.flatnonzero(~certain)
            tokens[rows] = self._draw_from_all(weights[rows], least[rows], plan.top_p[rows], uniforms[rows])
        return tokens

    def _draw_from_all(self, weights: Floats, least: Floats, top_p: Doubles, uniforms: Doubles) -> Ids:
        r, size = weights.shape
        tokens = np.empty(r, np.int64)
        step = max(1, AT_ONCE // size)
        for start in range(0, r, step):
            part = slice(start, start + step)
            few = weights[part]
            threshold = np.maximum(_nucleus(few, top_p[part], least[part]), least[part])
            self._learn(threshold)
            np.multiply(few, few >= threshold[:, None], out=few)
            tokens[part] = _place_in_two(_exact(few, threshold), uniforms[part])
        return tokens

    def _learn(self, threshold: Floats) -> None:
        smallest = np.fmin.reduce(threshold, initial=np.float32(np.inf))
        if smallest < np.inf:
            self._cut = CAUTION * float(smallest)


def _nucleus(weights: Floats, top_p: Doubles, least: Floats) -> Floats:
    """The smallest weight that top-p keeps in each row; 0 where all of its weights are not enough. <float32>[r]

    Radix selection by mass: weights are summed up in buckets by the leading bits of how far their floats' bits are from
    the largest weight's; the running sum says in which bucket the nucleus ends; the weights of this one alone are told
    apart by the bits that follow, until they are few.

    Args:
        weights: <float32>[r, C]
        top_p: <float64>[r]
        least: below it weights need not be told apart. <float32>[r]
    """
    each = np.arange(len(top_p))
    goal, before = top_p[:, None], np.zeros((len(top_p), 1))
    largest = weights.max(axis=1).view(np.int32)[:, None]  # as bits, which are in the order of the floats
    distance = largest - weights.view(np.int32)
    span = max(0, int((largest[:, 0] - least.view(np.int32)).max()))
    shift = max(0, span.bit_length() - FIRST_BITS)
    count = (span >> shift) + 2
    bucket = np.clip(distance >> shift, 0, count - 1)  # rows of NaN have no order
    while True:
        of_row = np.add(bucket, (each * count)[:, None]).reshape(-1)
        sums = np.bincount(of_row, _exact(weights, least).reshape(-1), len(each) * count)
        mass = sums.reshape(-1, count).cumsum(axis=1) + before
        last = (mass < goal).sum(axis=1)  # [r]; where even the sum of all is below, no bucket's number
        before = np.where(last > 0, mass[each, last - 1], before[:, 0])[:, None]
        found = Candidates(bucket == last.astype(np.int32)[:, None])
        weights = found.spread(found.of(weights), 0.0)
        if not shift or weights.shape[1] <= FEW:
            break
        bits = min(BITS, shift)
        shift, count = shift - bits, 1 << bits
        bucket = (largest - weights.view(np.int32)) >> shift & (count - 1)
    ordered = np.sort(weights, axis=1)[:, ::-1]
    place = (ordered.cumsum(axis=1, dtype=np.float64) + before < goal).sum(axis=1)
    smallest = np.where(last < count, ordered[each, np.minimum(place, ordered.shape[1] - 1)], np.float32(0.0))
    return np.asarray(smallest, np.float32)


def _exact(weights: Floats, least: Floats) -> Doubles:
    """Weights as multiples of 2^-52, whose sums are exact; those of 2^-29 and above, having 24 bits, are such already.

    Args:
        weights: at most 1.
        least: below it their last bits need not be right. <float32>[r]
    """
    result: Doubles = weights.astype(np.float64)
    if not least.min() >= EXACT:
        result += 1.0
        result -= 1.0
    return result


def _place(weights: Doubles, uniforms: Doubles) -> Ids:
    """The place in each row that its random number stands for. <int64>[r]

    Args:
        weights: <float64>[r, C]
        uniforms: <float64>[r]
    """
    mass = weights.cumsum(axis=1)
    place: Ids = (mass <= _goal(mass, uniforms)).sum(axis=1)
    return np.asarray(np.minimum(place, weights.shape[1] - 1))  # rows of NaN may end anywhere


def _goal(mass: Doubles, uniforms: Doubles) -> Doubles:
    """The share of each row's running sum that its random number stands for, less than the sum. <float64>[r, 1]"""
    total = mass[:, -1]
    return np.minimum(uniforms * total, ALMOST_ONE * total)[:, None]


def _place_in_two(weights: Doubles, uniforms: Doubles) -> Ids:
    """What `_place` gives, of many weights whose sums are exact: which part of the row first, then which of it.

    Args:
        weights: <float64>[r, C]
        uniforms: <float64>[r]
    """
    r, size = weights.shape
    each, width = np.arange(r), math.isqrt(size)
    starts = np.arange(0, size, width)
    mass = np.add.reduceat(weights, starts, axis=1).cumsum(axis=1)  # [r, C / width]
    goal = _goal(mass, uniforms)
    part = np.minimum((mass <= goal).sum(axis=1), len(starts) - 1)
    before = np.where(part > 0, mass[each, part - 1], 0.0)[:, None]
    places = starts[part][:, None] + np.arange(width)  # [r, width]
    inside = np.where(places < size, weights[each[:, None], np.minimum(places, size - 1)], 0.0)
    place: Ids = starts[part] + (inside.cumsum(axis=1) + before <= goal).sum(axis=1)
    return np.asarray(np.minimum(place, size - 1))  # rows of NaN may end anywhere
