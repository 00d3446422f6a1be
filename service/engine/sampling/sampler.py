"""From logits to tokens, for all rows at once.

Every operation works within a row, so a row's result does not depend, in any bit, on its neighbours.

Axes: b rows of a block, r of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import Alternative, Floats, Ids
from carousel.service.engine.rows.plan import BlockPlan, Doubles, Mask, Rows, block_rows
from carousel.service.engine.rows.sampling_table import SamplingTable
from carousel.service.engine.sampling.candidates import largest
from carousel.service.engine.sampling.draw import Draw
from carousel.service.engine.sampling.nucleus import NucleusDraw
from carousel.service.engine.sampling.softmax import Softmax
from carousel.service.engine.sampling.truncation import draw_from_largest

TINY = np.float32(1e-30)
"""Below this a probability is near the end of what float32 can tell apart, and its logarithm is had another way."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One token per row.

    `finite` is False where the logits were not finite: the token of that row means nothing. `alternatives` has the
    rows that tell them.
    """

    tokens: Ids
    logprobs: Floats
    finite: Mask
    alternatives: Mapping[int, tuple[Alternative, ...]]


class Sampler:
    """Chooses tokens and weighs given ones. Holds a buffer for a block of rows: one thread may use it at a time."""

    def __init__(self, vocabulary_size: int) -> None:
        self._block = block_rows(vocabulary_size)
        self._softmax = Softmax()
        self._weights = np.zeros((self._block, vocabulary_size), np.float32)
        """Probabilities, where they cannot take the place of logits."""
        self._draw = Draw(vocabulary_size, None if self._softmax.in_place else self._weights)
        self._nucleus = NucleusDraw(vocabulary_size)

    def sample(self, logits: Floats, table: SamplingTable, emits: Mask) -> Samples:
        """Choose the next token of each row as its parameters in `table` say.

        Args:
            logits: of rows 0 to n - 1; overwritten in blocks whose rows are all drawn from the model's own
                probabilities and tell no alternatives. <float32>[n, V]
            table: the rows' sampling parameters, random numbers and seen tokens.
            emits: which rows are to sample; what the others are given means nothing. <bool>[n]
        """
        n = len(logits)
        tokens = np.zeros(n, np.int64)
        logprobs = np.zeros(n, np.float32)
        alternatives: dict[int, tuple[Alternative, ...]] = {}
        uniforms = table.next_uniforms(n)
        for plan in table.plans(n):
            rows = plan.rows
            if not emits[rows].any():  # prompts alone: nothing to do, and a neighbour pays for none of it
                continue
            block = logits[rows]
            if plan.plain:
                tokens[rows], probabilities = self._draw.sample(block, uniforms[rows])
                logprobs[rows] = np.log(probabilities)
                continue
            seen = table.seen[rows] if table.seen is not None else None
            tokens[rows] = self._choose(block, plan, uniforms[rows], seen)
            own = self._weights[: len(block)] if plan.own else self._probabilities(block)  # drawn from, and still there
            logprobs[rows] = _logprobs(block, own, tokens[rows, None], plan.altered)[:, 0]
            asked = np.flatnonzero(table.alternatives[rows] * emits[rows])
            if len(asked):
                told = _alternatives(block, own, asked, table.alternatives[rows][asked])
                alternatives |= zip((rows.start + asked).tolist(), told, strict=True)
        return Samples(tokens, logprobs, np.isfinite(logprobs), alternatives)

    def score(self, logits: Floats, rows: Rows, targets: Ids) -> Doubles:
        """The log-probability of one given token in each of `rows`, in nats; NaN where the logits are not finite.

        Args:
            logits: <float32>[n, V]
            rows: which of them. <intp>[r]
            targets: <int64>[r]
        """
        result = np.empty(len(rows), np.float64)
        for start in range(0, len(rows), self._block):
            part = slice(start, start + self._block)
            block = logits[rows[part]]
            result[part] = _logprobs(block, self._probabilities(block), targets[part, None])[:, 0]
        return result

    def alternatives(self, logits: Floats, rows: Rows, counts: Ids) -> list[tuple[Alternative, ...]]:
        """The most probable tokens in each of `rows`, as many as `counts` says, ties by id, with log-probabilities.

        Fewer where the model makes fewer possible.

        Args:
            logits: <float32>[n, V]
            rows: which of them. <intp>[r]
            counts: at least 1. <int64>[r]
        """
        result: list[tuple[Alternative, ...]] = []
        for start in range(0, len(rows), self._block):
            part = slice(start, start + self._block)
            block = logits[rows[part]]
            result += _alternatives(block, self._probabilities(block), np.arange(len(block)), counts[part])
        return result

    def _choose(self, logits: Floats, plan: BlockPlan, uniforms: Doubles, seen: Mask | None) -> Ids:
        """A token of each row of a block. Logits are as they were in the end."""
        tokens = np.zeros(len(logits), np.int64)
        undo: tuple[Rows, Rows, Floats] | None = None
        if plan.penalty is not None and seen is not None:
            rows, eaten = np.divmod(np.flatnonzero(seen), seen.shape[1])  # nonzero() is slower by far
            before, factor = logits[rows, eaten], plan.penalty[rows]
            undo = rows, eaten, before
            logits[rows, eaten] = np.where(before > 0, before / factor, before * factor)
        if plan.greedy is not None:
            tokens[plan.greedy] = _part(logits, plan.greedy).argmax(axis=1)
        if plan.all is not None:
            weights = self._probabilities(_part(logits, plan.all.rows), plan.all.inverse_temperature)
            if plan.all.min_p is not None:
                least = plan.all.min_p * weights.max(axis=1)
                np.multiply(weights, weights >= least[:, None], out=weights)
            tokens[plan.all.rows] = self._draw.draw(weights, uniforms[plan.all.rows])
        if plan.mass is not None:
            weights = self._probabilities(_part(logits, plan.mass.rows), plan.mass.inverse_temperature)
            tokens[plan.mass.rows] = self._nucleus(weights, plan.mass, uniforms[plan.mass.rows])
        if plan.largest is not None:
            part = _part(logits, plan.largest.rows)
            tokens[plan.largest.rows] = draw_from_largest(part, plan.largest, uniforms[plan.largest.rows])
        if undo is not None:
            rows, eaten, before = undo
            logits[rows, eaten] = before
        return tokens

    def _probabilities(self, logits: Floats, factor: Floats | None = None) -> Floats:
        """The softmax of each row, times `factor` <float32>[r, 1], good until the next is asked for. <float32>[r, V]"""
        weights = self._weights[: len(logits)]
        if factor is not None:
            scaled = weights if self._softmax.in_place else np.empty_like(logits)
            logits = np.multiply(logits, factor, out=scaled)
        self._softmax(logits, weights)
        return weights


def _part(logits: Floats, rows: Rows) -> Floats:
    return logits if len(rows) == len(logits) else logits[rows]


def _logprobs(logits: Floats, own: Floats, tokens: Ids, altered: Mask | None = None) -> Floats:
    """The logarithm of the model's own probability of tokens, not finite where its logits are not. <float32>[r, m]

    Args:
        logits: <float32>[r, V]
        own: their softmax. <float32>[r, V]
        tokens: <int64>[r, m]
        altered: rows whose tokens may be less probable than float32 can tell; None: any may. The others are drawn
            from `own`, and not where it is 0. <bool>[r]
    """
    each = np.arange(len(logits))[:, None]
    probability = own[each, tokens]
    result = np.log(probability)
    tiny = probability < TINY
    if altered is not None:
        tiny &= altered[:, None]
    if tiny.any():
        rows, places = np.nonzero(tiny)
        below = logits[rows, tokens[rows, places]] - logits[rows].max(axis=1)
        result[rows, places] = below + np.log(own[rows].max(axis=1))
    return result


def _alternatives(logits: Floats, own: Floats, rows: Rows, counts: Ids) -> list[tuple[Alternative, ...]]:
    """The most probable tokens of some rows of a block, as many as `counts` says, ties by id."""
    part = _part(logits, rows)
    tokens, values = largest(part, np.minimum(counts, logits.shape[1]))
    logprobs = _logprobs(part, _part(own, rows), tokens).tolist()
    possible = np.minimum((values > -np.inf).sum(axis=1), counts).tolist()
    return [
        tuple(map(Alternative, of_row[:count], told[:count]))
        for of_row, told, count in zip(tokens.tolist(), logprobs, possible, strict=True)
    ]
