"""From logits to tokens, for all rows at once.

Every operation works within a row, so a row's result does not depend, in any bit, on its neighbours.

Axes: b rows of a block, V vocabulary, K buckets of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.engine.draw import Draw
from service.engine.plan import BlockPlan, Doubles, Mask, Rows, block_rows
from service.engine.rows import RowTable
from service.engine.runner import Softmax
from service.engine.sequence import Alternative, Floats, Ids
from service.engine.truncation import Truncator, bucket_sums

TINY = np.float32(1e-30)
"""Below this a probability is near the end of what float32 can tell apart, and its logarithm is had another way."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One token per row.

    `finite` is False where the logits were not finite: the token of that row means nothing.
    """

    tokens: Ids
    logprobs: Floats
    finite: Mask


class Sampler:
    """Chooses tokens and weighs given ones. Holds buffers for one block of rows, so one thread may use it at a time."""

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._block = block_rows(vocabulary_size)
        self._softmax = Softmax()
        shape = (self._block, vocabulary_size)
        self._own = np.zeros(shape, np.float32)
        """The model's own probabilities."""
        self._draw = Draw(vocabulary_size, None if self._softmax.in_place else self._own)
        self._truncator = Truncator()
        self._altered = np.zeros(shape, np.float32)
        """Probabilities after penalty and temperature."""
        self._scratch = np.zeros(shape, np.float32)

    def sample(self, logits: Floats, table: RowTable, emits: Mask) -> Samples:
        """Choose the next token of each row as its parameters in `table` say.

        Args:
            logits: of rows 0 to n - 1; overwritten in blocks of which nobody needs them again. <float32>[n, V]
            table: the rows' sampling parameters, random numbers and seen tokens.
            emits: which rows are to sample; what the others are given means nothing. <bool>[n]
        """
        n = len(logits)
        tokens = np.zeros(n, np.int64)
        logprobs = np.zeros(n, np.float32)
        uniforms = table.next_uniforms(n)
        for plan in table.plans(n):
            rows = plan.rows
            if not emits[rows].any():  # prompts alone: nothing to do, and a neighbour pays for none of it
                continue
            seen = table.seen[rows] if table.seen is not None else None
            tokens[rows], logprobs[rows] = self._sample_block(logits[rows], plan, uniforms[rows], seen)
        return Samples(tokens, logprobs, np.isfinite(logprobs))

    def score(self, logits: Floats, rows: Rows, targets: Ids) -> Doubles:
        """The log-probability of one given token in each of `rows`, in nats; NaN where the logits are not finite.

        Args:
            logits: <float32>[n, V]
            rows: which of them. <intp>[r]
            targets: <int64>[r]
        """
        result = np.empty(len(rows), np.float64)
        for start in range(0, len(rows), self._block):
            end = start + self._block
            part = rows[start:end]
            block = logits[part]  # [b, V]
            top = block.max(axis=1)
            chosen = block[np.arange(len(part)), targets[start:end]]
            result[start:end] = (chosen - top) - np.log(self._total(block, top))
        return result

    def alternatives(self, logits: Floats, count: int) -> tuple[Alternative, ...]:
        """The `count` most probable tokens of one row <float32>[V], ties by id, with log-probabilities.

        Fewer where the model makes fewer possible.
        """
        count = min(count, int((logits > -np.inf).sum()))
        threshold = np.partition(logits, self._size - count)[self._size - count]
        candidates = np.flatnonzero(logits >= threshold)
        best = candidates[np.argsort(-logits[candidates], kind="stable")[:count]]
        top = logits.max(keepdims=True)  # [1]
        logprobs = ((logits[best] - top) - np.log(self._total(logits[None], top))).astype(np.float32)
        return tuple(
            Alternative(token, logprob) for token, logprob in zip(best.tolist(), logprobs.tolist(), strict=True)
        )

    def _sample_block(
        self, logits: Floats, plan: BlockPlan, uniforms: Doubles, seen: Mask | None
    ) -> tuple[Ids, Floats]:
        if plan.plain:
            tokens, probabilities = self._draw.sample(logits, uniforms)
            return tokens, np.log(probabilities)
        # In place where it may be: a second array of this size would drive the first, and the weights of the next
        # step, out of the caches.
        own = logits if plan.in_place and self._softmax.in_place else self._own[: len(logits)]
        self._softmax(logits, own)
        penalised = logits
        if plan.penalty is not None and seen is not None:
            penalised = self._penalise(logits, plan.penalty, seen)
        if plan.all_greedy:
            tokens = np.asarray(penalised.argmax(axis=1))
        else:
            weights = own
            if plan.inverse_temperature is not None or penalised is not logits:
                weights, factor = self._altered[: len(logits)], plan.inverse_temperature
                scaled = penalised
                if factor is not None:
                    scaled = np.multiply(penalised, factor, out=self._scratch[: len(logits)])
                self._softmax(scaled, weights)
            if plan.truncation is not None:
                # In place, even where these are the model's own: no probability that is still asked for is removed.
                self._truncator.truncate(weights, plan.truncation)
            tokens = self._draw.draw(weights, uniforms)
            if plan.greedy is not None:
                tokens = np.where(plan.greedy, penalised.argmax(axis=1), tokens)
        return tokens, _logprobs(logits, own, tokens, plan)

    def _total(self, logits: Floats, top: Floats) -> Doubles:
        """The sum of exp(logits - top) of each row. <float64>[b]"""
        weights = self._own[: len(logits)]
        np.subtract(logits, top[:, None], out=weights)
        np.exp(weights, out=weights)
        total: Doubles = bucket_sums(weights)[:, -1]
        return total

    def _penalise(self, logits: Floats, penalty: Floats, seen: Mask) -> Floats:
        """Logits with the repetition penalty of each row. <float32>[b, V]"""
        result: Floats = self._scratch[: len(logits)]
        np.copyto(result, logits)
        rows, tokens = np.divmod(np.flatnonzero(seen), seen.shape[1])  # nonzero() is slower by far
        chosen, factor = logits[rows, tokens], penalty[rows, 0]
        result[rows, tokens] = np.where(chosen > 0, chosen / factor, chosen * factor)
        return result


def _logprobs(logits: Floats, own: Floats, tokens: Ids, plan: BlockPlan) -> Floats:
    """The logarithm of the model's own probability of each row's token, not finite where its logits are not. [b]

    A row that is drawn from the model's own probabilities draws no token whose probability float32 does not hold.
    """
    probability = own[plan.each, tokens]
    if plan.altered is not None and (plan.altered & (probability < TINY)).any():
        rows = np.flatnonzero(plan.altered & (probability < TINY))
        below = logits[rows, tokens[rows]] - logits[rows].max(axis=1)
        result = np.log(probability)
        result[rows] = below + np.log(own[rows].max(axis=1))
        return np.asarray(result, np.float32)
    return np.asarray(np.log(probability), np.float32)
