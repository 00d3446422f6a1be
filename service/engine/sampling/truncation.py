"""Top-k, and top-p and min-p beside it: a token is drawn from among those that they keep (nucleus.py: without top-k).

Each of the three keeps what is not below a threshold weight, so ties are kept together and the outcome cannot depend on
the order in which equal weights were sorted. Among what is kept, a token is found by inverse transform sampling: the
first, in the order of ids, at which the running sum exceeds the random number's share of the sum.

Axes: r truncated rows, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

import numpy as np

from carousel.service.engine.parameters import Floats, Ids
from carousel.service.engine.rows.plan import Doubles, LargestOnly
from carousel.service.engine.sampling.candidates import LEAST, Candidates, bounds_of_largest, grouping

ALMOST_ONE = 1.0 - 2.0**-52
"""A random number's share of a sum is less than the sum, however it is rounded."""

FEW_ROWS = 4
"""So many rows, and fewer, are sampled one by one: numpy's calls take longer than what they do."""


def draw_from_largest(logits: Floats, plan: LargestOnly, uniforms: Doubles) -> Ids:
    """A token of each row by the softmax of its tempered logits, truncated by top-k, then top-p, then min-p. <int64>[r]

    Args:
        logits: after penalties. <float32>[r, V]
        plan: the rows' parameters.
        uniforms: in [0, 1). <float64>[r]
    """
    if len(logits) <= FEW_ROWS:
        return np.array([_draw_one_from_largest(logits, plan, uniforms, row) for row in range(len(logits))], np.int64)
    found = Candidates(logits >= np.maximum(bounds_of_largest(logits, plan.top_k), LEAST)[:, None])
    each = np.arange(len(logits))
    values = found.spread(found.of(logits), -np.inf)  # [r, C]
    weights: Doubles = np.exp((values - np.maximum.reduce(values, axis=1)[:, None]) * plan.inverse_temperature)
    ordered = np.sort(weights, axis=1)[:, ::-1]
    threshold = ordered[each, np.minimum(plan.top_k, ordered.shape[1]) - 1]
    if plan.top_p is not None:
        mass = np.where(ordered >= threshold[:, None], ordered, 0.0).cumsum(axis=1)
        reached = (mass >= (plan.top_p * mass[:, -1])[:, None]).argmax(axis=1)
        threshold = np.maximum(threshold, ordered[each, reached])
    if plan.min_p is not None:
        threshold = np.maximum(threshold, plan.min_p)  # the largest weight is 1
    np.multiply(weights, weights >= threshold[:, None], out=weights)
    return found.tokens(place_of(weights, uniforms))


def _draw_one_from_largest(logits: Floats, plan: LargestOnly, uniforms: Doubles, row: int) -> int:
    """The same of one row, bit for bit, in half as many of numpy's calls."""
    of_row, count = logits[row], int(plan.top_k[row])
    members, groups = grouping(len(of_row), count)
    part = of_row if members == 1 else np.maximum.reduce(of_row[: members * groups].reshape(members, groups), axis=0)
    tokens = (of_row >= max(np.sort(part)[groups - count], LEAST)).nonzero()[0]
    values = of_row[tokens]
    most = np.maximum.reduce(values, initial=-np.inf)
    if not np.isfinite(most):
        return 0
    weights: Doubles = np.exp((values - most) * plan.inverse_temperature[row])
    ordered = np.sort(weights)[::-1]
    threshold = ordered[min(count, len(ordered)) - 1]
    if plan.top_p is not None:
        mass = ordered[ordered >= threshold].cumsum()
        threshold = ordered[mass.searchsorted(plan.top_p[row] * mass[-1])]
    if plan.min_p is not None:
        threshold = max(threshold, plan.min_p[row])
    mass = (weights * (weights >= threshold)).cumsum()
    return int(tokens[mass.searchsorted(min(uniforms[row] * mass[-1], ALMOST_ONE * mass[-1]), side="right")])


def place_of(weights: Doubles, uniforms: Doubles) -> Ids:
    """The place in each row that its random number stands for. <int64>[r]

    Args:
        weights: <float64>[r, C]
        uniforms: <float64>[r]
    """
    mass = weights.cumsum(axis=1)
    return np.asarray((mass > goal_of(mass, uniforms)).argmax(axis=1))


def goal_of(mass: Doubles, uniforms: Doubles) -> Doubles:
    """The share of each row's running sum that its random number stands for, less than the sum. <float64>[r, 1]"""
    total = mass[:, -1]
    return np.minimum(uniforms * total, ALMOST_ONE * total)[:, None]
