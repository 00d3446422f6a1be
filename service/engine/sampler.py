"""From logits to tokens, for all rows at once.

Every operation works within a row, so a row's result does not depend, in any bit, on its neighbours.

Axes: b rows of a block, V vocabulary, W vocabulary padded to whole buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.engine.plan import BlockPlan, Doubles, Mask, Rows, Truncation, block_rows
from service.engine.rows import RowTable
from service.engine.sequence import Alternative, Floats, Ids

BUCKET = 128
"""Weights summed together before the running sum is taken: a running sum is slow, a plain sum is not."""


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
        padded = -(-vocabulary_size // BUCKET) * BUCKET
        self._weights = np.zeros((self._block, padded), np.float32)
        self._ordered = np.zeros((self._block, padded), np.float32)
        self._scratch = np.zeros((self._block, vocabulary_size), np.float32)

    def sample(self, logits: Floats, table: RowTable, emits: Mask) -> Samples:
        """Choose the next token of each row as its parameters in `table` say.

        Args:
            logits: of rows 0 to n - 1. <float32>[n, V]
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
            total = _bucket_sums(self._weigh(block, top))[:, -1]
            chosen = block[np.arange(len(part)), targets[start:end]]
            result[start:end] = (chosen - top) - np.log(total)
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
        total = _bucket_sums(self._weigh(logits[None], top))[:, -1]  # [1]
        logprobs = ((logits[best] - top) - np.log(total)).astype(np.float32)
        return tuple(
            Alternative(token, logprob) for token, logprob in zip(best.tolist(), logprobs.tolist(), strict=True)
        )

    def _sample_block(
        self, logits: Floats, plan: BlockPlan, uniforms: Doubles, seen: Mask | None
    ) -> tuple[Ids, Floats]:
        top = logits.max(axis=1)  # [b]
        weights = self._weigh(logits, top)  # [b, W]
        sums = _bucket_sums(weights)  # [b, W / BUCKET]
        log_total = np.log(sums[:, -1])
        penalised, largest = logits, top
        if plan.penalty is not None and seen is not None:
            penalised = self._penalise(logits, plan.penalty, seen)
            largest = penalised.max(axis=1)
        if not plan.all_greedy:
            altered = plan.inverse_temperature is not None or penalised is not logits
            if altered:
                self._weigh(penalised, largest, plan.inverse_temperature)
            if plan.truncation is not None or plan.min_p is not None:
                self._truncate(weights, plan)
                altered = True
            if altered:
                sums = _bucket_sums(weights)
            total = sums[:, -1]
            tokens = _first_beyond(weights, sums, np.minimum(uniforms * total, np.nextafter(total, 0.0)), plan.each)
            tokens = np.minimum(tokens, self._size - 1)  # rows of NaN may end anywhere
            if plan.greedy is not None:
                tokens = np.where(plan.greedy, penalised.argmax(axis=1), tokens)
        else:
            tokens = penalised.argmax(axis=1)
        return tokens, ((logits[plan.each, tokens] - top) - log_total).astype(np.float32)

    def _weigh(self, logits: Floats, top: Floats, factor: Floats | None = None) -> Floats:
        """exp(factor * (logits - top)) in the buffer, whose padding is zero. <float32>[b, W]"""
        buffer = self._weights[: len(logits)]
        weights = buffer[:, : self._size]
        np.subtract(logits, top[:, None], out=weights)
        if factor is not None:
            np.multiply(weights, factor, out=weights)
        np.exp(weights, out=weights)
        return buffer

    def _penalise(self, logits: Floats, penalty: Floats, seen: Mask) -> Floats:
        """Logits with the repetition penalty of each row. <float32>[b, V]"""
        result: Floats = self._scratch[: len(logits)]
        np.copyto(result, np.where(logits > 0, logits / penalty, logits * penalty))
        np.copyto(result, logits, where=~seen)
        return result

    def _truncate(self, weights: Floats, plan: BlockPlan) -> None:
        """Set to zero, in place, the weights that top-k, top-p or min-p remove. The largest weight of a row is 1.

        Each of the three keeps what is not below a threshold weight, so ties are kept together and the outcome cannot
        depend on the order in which equal weights were sorted.
        """
        threshold: Floats = np.zeros(len(weights), np.float32) if plan.min_p is None else plan.min_p.copy()  # [b]
        if plan.truncation is not None:
            rows = plan.truncation.rows
            threshold[rows] = np.maximum(threshold[rows], self._thresholds(weights, plan.truncation))
        np.multiply(weights, weights >= threshold[:, None], out=weights)

    def _thresholds(self, weights: Floats, truncation: Truncation) -> Floats:
        """The smallest weight that top-k, then top-p, keep in each truncated row. <float32>[r]"""
        rows, top_k, top_p = truncation.rows, truncation.top_k, truncation.top_p
        each = np.arange(len(rows))
        width = weights.shape[1]
        if not (top_p < 1.0).any():
            places = width - top_k
            kth: Floats = np.partition(weights[rows], np.unique(places), axis=1)[each, places]
            return kth
        ordered = self._ordered[: len(rows)]  # descending
        np.negative(weights[rows], out=ordered)
        ordered.sort(axis=1)
        np.negative(ordered, out=ordered)
        kept = np.where(top_k > 0, top_k, width)
        threshold = ordered[each, kept - 1]
        np.multiply(ordered, ordered >= threshold[:, None], out=ordered)
        sums = _bucket_sums(ordered)
        nucleus = _first_beyond(ordered, sums, top_p * sums[:, -1], each, reaching=True)
        return np.asarray(np.where(top_p < 1.0, np.maximum(threshold, ordered[each, nucleus]), threshold), np.float32)


def _bucket_sums(weights: Floats) -> Doubles:
    """Running sum over the buckets of each row: entry j sums weights[:(j + 1) * BUCKET]. <float64>[b, W / BUCKET]"""
    buckets = weights.reshape(len(weights), -1, BUCKET)  # [b, W / BUCKET, BUCKET]
    return np.cumsum(buckets.sum(axis=2), axis=1, dtype=np.float64)


def _first_beyond(weights: Floats, sums: Doubles, goal: Doubles, each: Rows, *, reaching: bool = False) -> Ids:
    """The first place of each row at which the running sum of weights exceeds the goal (or, `reaching`, equals it).

    With a goal of u * total, u uniform in [0, 1), this is the inverse of the cumulative distribution; a weight of zero
    is never chosen, because the running sum does not grow there.

    Args:
        weights: not negative. <float32>[b, W]
        sums: their bucket sums. <float64>[b, W / BUCKET]
        goal: <float64>[b]
        each: 0 to b - 1. <intp>[b]
        reaching: stop where the running sum equals the goal, too.
    """
    short = sums < goal[:, None] if reaching else sums <= goal[:, None]
    bucket = np.minimum(short.sum(axis=1), sums.shape[1] - 1)  # [b]
    before = np.where(bucket > 0, sums[each, bucket - 1], 0.0)
    inside = weights.reshape(len(weights), -1, BUCKET)[each, bucket]  # [b, BUCKET]
    running = np.cumsum(inside, axis=1, dtype=np.float64) + before[:, None]
    short = running < goal[:, None] if reaching else running <= goal[:, None]
    # Rounding can leave the goal just out of reach: then the last place with weight in the bucket is the one.
    last = BUCKET - 1 - (inside[:, ::-1] > 0).argmax(axis=1)
    first: Ids = bucket * BUCKET + np.minimum(short.sum(axis=1), last)
    return first
