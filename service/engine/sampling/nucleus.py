"""Top-p of all weights, and min-p beside it: a token is drawn from among those that they keep (truncation.py).

The threshold of a row is the smallest weight of its nucleus. It is looked for where it is likely to be: among the
largest weights, or in a window around what a sample of the weights says. What lies there says whether it was found;
else all weights of the row are put in order. So where it is looked for changes no result.

Weights are float32 probabilities, taken as multiples of 2^-52: so sums of them are exact in float64, and do not depend
on the order, or the parts, that they are summed in.

Axes: r truncated rows, V vocabulary, C candidates of a row, S weights of a sample, K buckets of B weights.
"""

from __future__ import annotations

import numpy as np

from carousel.service.engine.parameters import Floats, Ids
from carousel.service.engine.rows.plan import Doubles, Mask, MassOnly
from carousel.service.engine.sampling.candidates import Candidates
from carousel.service.engine.sampling.draw import bucket_width
from carousel.service.engine.sampling.truncation import ALMOST_ONE, FEW_ROWS, goal_of, place_of

SPARSE = 8
"""A nucleus is small where fewer than one in so many tokens are in it: it is taken out of the others first."""

CAUTION = np.float32(0.7)
"""How much of the last rows' thresholds is looked at this time."""

SLOWLY = np.float32(0.95)
"""The lowest of them is forgotten so slowly."""

EVERYTHING = [np.float32(0.0)]
"""What is looked at in a small vocabulary."""

EXACT = 2.0**-29
"""Weights of this and above, having 24 bits, are multiples of 2^-52 already."""

SAMPLE = 512
"""Weights of a row, at most, that say where its threshold may be: numpy puts so few in order at once."""

SPARE = 3
"""Of the sample, so many lie in the window beyond where the threshold should be."""

AT_ONCE = 1 << 16
"""Weights that are summed up at a time: what is made of them stays in a core's cache."""


class NucleusDraw:
    """Draws where top-p truncates, and top-k does not. It learns where to look for thresholds.

    Args:
        size: V.
    """

    def __init__(self, size: int) -> None:
        self._small: list[Floats] = []
        """Thresholds of this time's rows whose nucleus is small."""
        self._cuts: list[np.float32] = []
        """What is a bit less than most of the last ones, and than nearly all; none where there were none."""
        width = bucket_width(size)
        self._kept = np.zeros((max(1, AT_ONCE // size), size), np.float32)
        """Weights that are not below a threshold, zeros in place of others."""
        self._doubles = np.zeros((len(self._kept), -(-size // width), width))
        """The same as they are summed up; zeros beyond V."""

    def __call__(self, weights: Floats, plan: MassOnly, uniforms: Doubles) -> Ids:
        """A token of each row by its weights, truncated by top-p, then min-p. <int64>[r]

        Args:
            weights: the softmax of each row. <float32>[r, V]
            plan: the rows' parameters.
            uniforms: in [0, 1). <float64>[r]
        """
        size = weights.shape[1]
        # All that is below this, together, is not half of what top-p leaves out.
        least = ((1.0 - plan.top_p) / (2 * size)).astype(np.float32)  # [r]
        if plan.min_p is not None:
            least = np.fmax(least, plan.min_p * weights.max(axis=1))  # whatever rows of NaN have
        tokens, left, top_p = np.zeros(len(weights), np.int64), np.arange(len(weights)), plan.top_p
        self._small = []
        for cut in self._cuts if size > SAMPLE else EVERYTHING:
            drawn, certain = self._draw_from_few(weights, top_p, np.maximum(least, cut), least, uniforms)
            tokens[left] = drawn
            if certain.all():
                break
            rows = np.flatnonzero(~certain)
            left, weights, top_p, least, uniforms = left[rows], weights[rows], top_p[rows], least[rows], uniforms[rows]
        else:
            tokens[left] = self._draw_from_all(weights, top_p, least, uniforms)
        self._learn()
        return tokens

    def _draw_from_few(
        self, weights: Floats, top_p: Doubles, cut: Floats, least: Floats, uniforms: Doubles
    ) -> tuple[Ids, Mask]:
        """The same, where few weights of a row are not below its cut; and which rows' thresholds are known so."""
        size = weights.shape[1]
        most = size // SPARSE if size > SAMPLE else size
        if len(weights) <= FEW_ROWS:
            rows = zip(weights, top_p, cut, least, uniforms, strict=True)
            tokens, thresholds = map(np.array, zip(*(_draw_one_from_few(*row, most) for row in rows), strict=True))
            self._small.append(thresholds)
            return tokens, thresholds > 0.0
        chosen = weights >= cut[:, None]
        found = Candidates(chosen)
        many = found.counts > most
        if many.any():
            chosen[many] = False
            found = Candidates(chosen)
        values = found.spread(found.of(weights), 0.0)  # [r, C]
        threshold, certain = _threshold(values, top_p, 0.0, cut)
        certain |= (cut == least) & ~many
        self._small.append(threshold[certain])
        np.multiply(values, values >= threshold[:, None], out=values)
        return found.tokens(place_of(_exact(values, threshold), uniforms)), certain

    def _draw_from_all(self, weights: Floats, top_p: Doubles, least: Floats, uniforms: Doubles) -> Ids:
        """The same, where what is kept may be most of the vocabulary."""
        threshold, sums = self._nucleus(weights, top_p, least)
        each, size = np.arange(len(weights)), weights.shape[1]
        mass = sums.cumsum(axis=1)  # [r, K]
        goal = goal_of(mass, uniforms)
        bucket = (mass > goal).argmax(axis=1)
        before = np.where(bucket > 0, mass[each, bucket - 1], 0.0)[:, None]
        width = self._doubles.shape[2]
        places = np.minimum((bucket * width)[:, None] + np.arange(width), size - 1)  # [r, B]
        inside = weights[each[:, None], places]
        np.multiply(inside, inside >= threshold[:, None], out=inside)
        place = (_exact(inside, threshold).cumsum(axis=1) + before > goal).argmax(axis=1)
        return np.asarray(bucket * width + place)

    def _nucleus(self, weights: Floats, top_p: Doubles, least: Floats) -> tuple[Floats, Doubles]:
        """The threshold of each row <float32>[r], and what is kept of each of its buckets <float64>[r, K]."""
        each, size = np.arange(len(weights)), weights.shape[1]
        sample = np.sort(weights[:, :: -(-size // SAMPLE)], axis=1)  # [r, S]
        below = sample.cumsum(axis=1) * np.float32(size / sample.shape[1])  # about the mass up to each
        guess = _first(below, 1.0 - top_p)
        near = np.maximum(sample[each, guess], least)
        sums = self._sums(weights, near)
        above = sums.sum(axis=1)  # the mass from there on, exactly
        lacking = top_p - above
        # How far from there the threshold is, the sample says about: by half as much more, and some to spare.
        lower = lacking > 0
        edge = _first(below, below[each, guess] - 1.5 * lacking) + np.where(lower, -SPARE, SPARE)
        last = sample.shape[1] - 1
        other = sample[each, np.clip(edge, 0, last)]
        other[edge < 0], other[edge > last] = 0.0, 1.0
        low = np.maximum(np.where(lower, other, near), least)
        high = np.where(lower, near, np.nextafter(np.maximum(other, near), np.float32(2.0)))
        high[SPARSE * np.abs(edge - guess) > last] = 0.0  # no window, where it would be too wide
        found = Candidates((weights >= low[:, None]) & (weights < high[:, None]))
        flat = found.of(weights)
        values = found.spread(flat, 0.0)
        above -= np.where(lower, 0.0, _exact(values, low).sum(axis=1))
        threshold, certain = _threshold(values, top_p, above[:, None], low)
        certain = (certain | (low == least)) & (above < top_p) & (high > 0.0)
        self._small.append(threshold[certain & (SPARSE * (last - guess) < last)])
        # Of the window, what is kept joins the sums where it was not in them; what is not leaves them where it was.
        row = np.repeat(each, found.counts)
        joins = (flat >= threshold[row]).astype(np.float64) - ~lower[row]
        count, width = sums.shape[1], self._doubles.shape[2]
        bucket = (found.flat - row * size) // width + row * count
        sums += np.bincount(bucket, _exact(flat, low) * joins, sums.size).reshape(sums.shape)
        if not certain.all():
            rows = np.flatnonzero(~certain)
            threshold[rows], _ = _threshold(weights[rows], top_p[rows], 0.0, least[rows])
            sums[rows] = self._sums(weights[rows], threshold[rows])
        return threshold, sums

    def _sums(self, weights: Floats, least: Floats) -> Doubles:
        """The sums of the weights of each bucket that are not below `least` <float32>[r]. <float64>[r, K]"""
        r, size = weights.shape
        step, count, width = self._doubles.shape
        sums = np.empty((r, count))
        for start in range(0, r, step):
            part = slice(start, start + step)
            few = weights[part]
            kept, doubles = self._kept[: len(few)], self._doubles[: len(few)]
            np.multiply(few, few >= least[part, None], out=kept)
            flat = doubles.reshape(len(few), count * width)[:, :size]
            np.copyto(flat, kept)
            if not least.min() >= EXACT:
                flat += 1.0
                flat -= 1.0
            np.einsum("rkb->rk", doubles, out=sums[part])
        return sums

    def _learn(self) -> None:
        small = np.sort(np.concatenate(self._small))
        small = small[small > 0.0]  # and is a number
        if not len(small):
            self._cuts = []
            return
        lowest = CAUTION * small[0]
        if self._cuts:
            lowest = min(lowest, self._cuts[-1] / SLOWLY)
        self._cuts = [CAUTION * small[len(small) // 4], lowest]


def _draw_one_from_few(
    weights: Floats, top_p: float, cut: np.float32, least: np.float32, uniform: float, most: int
) -> tuple[np.int64, np.float32]:
    """The same of one row, bit for bit, in fewer of numpy's calls: a token, and the threshold, which is 0 where it is
    not known from `most` weights."""
    tokens = (weights >= cut).nonzero()[0]
    if not 0 < len(tokens) <= most:
        return np.int64(0), np.float32(0.0)
    values = weights[tokens]
    ordered = np.sort(values)[::-1]
    place = _exact(ordered, cut).cumsum().searchsorted(top_p)
    if place == len(ordered) and cut != least:
        return np.int64(0), np.float32(0.0)
    threshold = ordered[place] if place < len(ordered) else cut
    mass = _exact(values * (values >= threshold), cut).cumsum()
    goal = min(uniform * mass[-1], ALMOST_ONE * mass[-1])
    return tokens[mass.searchsorted(goal, side="right")], threshold


def _threshold(values: Floats, top_p: Doubles, above: Doubles | float, least: Floats) -> tuple[Floats, Mask]:
    """The smallest weight of each row's nucleus, `least` where there is none so small, and whether there is.

    Args:
        values: all weights of a row that may be it, and those between them, filled up with zeros. <float32>[r, C]
        top_p: <float64>[r]
        above: the mass of all larger weights. <float64>[r, 1]
        least: none of `values` is below, or no smaller one need be told from it. <float32>[r]
    """
    ordered = np.sort(values, axis=1)[:, ::-1]
    mass = _exact(ordered, least).cumsum(axis=1) + above
    found = mass[:, -1] >= top_p
    smallest = ordered[np.arange(len(ordered)), (mass >= top_p[:, None]).argmax(axis=1)]
    return np.where(found, np.maximum(smallest, least), least), found


def _first(ascending: Floats, goals: Doubles) -> Ids:
    """The first place in each row <float32>[r, S] that reaches its goal <float64>[r]; the last where none does."""
    reached = ascending >= goals[:, None]
    return np.asarray(np.where(reached[:, -1], reached.argmax(axis=1), ascending.shape[1] - 1))


def _exact(weights: Floats, least: Floats | np.float32) -> Doubles:
    """Weights as multiples of 2^-52, whose sums are exact.

    Args:
        weights: at most 1.
        least: below it their last bits need not be right. <float32>[r], or of one row <float32>[]
    """
    result: Doubles = weights.astype(np.float64)
    if not least.min() >= EXACT:
        result += 1.0
        result -= 1.0
    return result
