"""From logits to tokens, for all rows at once.

Every operation works within a row, so a row's result does not depend, in any bit, on its neighbours.

Axes: b rows of a block, V vocabulary, W vocabulary padded to whole buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.engine.rows import Mask, Rows, RowTable
from service.engine.sequence import Alternative, Floats, Ids

BLOCK = 16
"""Rows worked on at a time: the buffers of 16 rows stay in the processor's second-level cache."""

BUCKET = 128
"""Weights summed together before the running sum is taken: a running sum is slow, a plain sum is not."""

MIN_TEMPERATURE = np.float32(1e-6)
"""Below this (and above 0) a temperature acts as this one: its inverse must not overflow."""

Doubles = npt.NDArray[np.float64]


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
        padded = -(-vocabulary_size // BUCKET) * BUCKET
        self._weights = np.zeros((BLOCK, padded), np.float32)
        self._ordered = np.zeros((BLOCK, padded), np.float32)
        self._scratch = np.zeros((BLOCK, vocabulary_size), np.float32)

    def sample(self, logits: Floats, table: RowTable) -> Samples:
        """Choose the next token of each row as its parameters in `table` say.

        Args:
            logits: of rows 0 to n - 1. <float32>[n, V]
            table: the rows' sampling parameters, random numbers and seen tokens.
        """
        n = len(logits)
        tokens = np.empty(n, np.int64)
        logprobs = np.empty(n, np.float32)
        uniforms = table.next_uniforms(n)
        for start in range(0, n, BLOCK):
            rows = slice(start, min(start + BLOCK, n))
            tokens[rows], logprobs[rows] = self._sample_block(logits[rows], table, rows, uniforms[rows])
        return Samples(tokens, logprobs, np.isfinite(logprobs))

    def score(self, logits: Floats, rows: Rows, targets: Ids) -> Doubles:
        """The log-probability of one given token in each of `rows`, in nats; NaN where the logits are not finite.

        Args:
            logits: <float32>[n, V]
            rows: which of them. <intp>[r]
            targets: <int64>[r]
        """
        result = np.empty(len(rows), np.float64)
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            block = logits[part]  # [b, V]
            top, total = self._normalise(block)
            chosen = block[np.arange(len(part)), targets[start : start + BLOCK]]
            result[start : start + BLOCK] = (chosen - top).astype(np.float64) - np.log(total, dtype=np.float64)
        return result

    def alternatives(self, logits: Floats, count: int) -> tuple[Alternative, ...]:
        """The `count` most probable tokens of one row <float32>[V], ties by id, with log-probabilities."""
        count = min(count, self._size)
        threshold = np.partition(logits, self._size - count)[self._size - count]
        candidates = np.flatnonzero(logits >= threshold)
        best = candidates[np.argsort(-logits[candidates], kind="stable")[:count]]
        top, total = self._normalise(logits[None])
        logprobs = (logits[best] - top) - np.log(total)
        return tuple(
            Alternative(token, logprob) for token, logprob in zip(best.tolist(), logprobs.tolist(), strict=True)
        )

    def _sample_block(self, logits: Floats, table: RowTable, rows: slice, uniforms: Doubles) -> tuple[Ids, Floats]:
        b = len(logits)
        each = np.arange(b)
        top, total = self._normalise(logits)  # leaves exp(logits - top) in the weights
        temperature = table.temperature[rows]
        penalised = self._penalise(logits, table, rows)
        greedy = temperature == 0.0
        tokens = penalised.argmax(axis=1) if greedy.any() else np.zeros(b, np.int64)
        if not greedy.all():
            weights = self._weights[:b]  # [b, W]
            if penalised is not logits or (temperature != 1.0).any():
                self._temper(penalised, temperature)
            self._truncate(weights, table.top_k[rows], table.top_p[rows], table.min_p[rows])
            sums = _bucket_sums(weights)
            total_weight = sums[:, -1]
            goal = np.minimum(uniforms * total_weight, np.nextafter(total_weight, 0.0))
            sampled = _first_beyond(weights, sums, goal)
            tokens = np.where(greedy, tokens, sampled)
        tokens = np.minimum(tokens, self._size - 1)
        logprobs = (logits[each, tokens] - top) - np.log(total)
        return tokens, logprobs

    def _normalise(self, logits: Floats) -> tuple[Floats, Floats]:
        """The largest logit of each row, and the sum of exp(logit - largest); the exponentials stay in the weights."""
        top = logits.max(axis=1)  # [b]
        weights = self._weights[: len(logits), : self._size]
        np.subtract(logits, top[:, None], out=weights)
        np.exp(weights, out=weights)
        return top, weights.sum(axis=1)

    def _penalise(self, logits: Floats, table: RowTable, rows: slice) -> Floats:
        """Logits with the repetition penalty of each row; the very same array where no row has one."""
        penalty = table.penalty[rows]
        if table.seen is None or (penalty == 1.0).all():
            return logits
        result: Floats = self._scratch[: len(logits)]
        divisor = penalty[:, None]
        np.copyto(result, np.where(logits > 0, logits / divisor, logits * divisor))
        np.copyto(result, logits, where=~table.seen[rows])
        return result

    def _temper(self, logits: Floats, temperature: Floats) -> None:
        """Leave exp((logits - largest) / temperature) in the weights; a greedy row's are never looked at."""
        weights = self._weights[: len(logits), : self._size]
        inverse = 1.0 / np.maximum(temperature, MIN_TEMPERATURE)
        np.subtract(logits, logits.max(axis=1)[:, None], out=weights)
        np.multiply(weights, inverse[:, None], out=weights)
        np.exp(weights, out=weights)

    def _truncate(self, weights: Floats, top_k: Ids, top_p: Doubles, min_p: Floats) -> None:
        """Set to zero, in place, the weights that top-k, top-p or min-p remove. The largest weight of a row is 1.

        Each of the three keeps what is not below a threshold weight, so ties are kept together and the outcome cannot
        depend on the order in which equal weights were sorted.
        """
        threshold: Floats = min_p.astype(np.float32)  # [b]
        top_k = np.where(top_k < self._size, top_k, 0)
        rows = np.flatnonzero((top_k > 0) | (top_p < 1.0))
        if len(rows):
            threshold[rows] = np.maximum(threshold[rows], self._thresholds(weights, rows, top_k[rows], top_p[rows]))
        if threshold.any():
            np.multiply(weights, weights >= threshold[:, None], out=weights)

    def _thresholds(self, weights: Floats, rows: Rows, top_k: Ids, top_p: Doubles) -> Floats:
        """The smallest weight that top-k, then top-p, keep in each of `rows`. <float32>[r]"""
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
        nucleus = _first_beyond(ordered, sums, top_p * sums[:, -1], reaching=True)
        return np.asarray(np.where(top_p < 1.0, np.maximum(threshold, ordered[each, nucleus]), threshold), np.float32)


def _bucket_sums(weights: Floats) -> Doubles:
    """Running sum over the buckets of each row: entry j sums weights[:(j + 1) * BUCKET]. <float64>[b, W / BUCKET]"""
    buckets = weights.reshape(len(weights), -1, BUCKET)  # [b, W / BUCKET, BUCKET]
    return np.cumsum(buckets.sum(axis=2), axis=1, dtype=np.float64)


def _first_beyond(weights: Floats, sums: Doubles, goal: Doubles, *, reaching: bool = False) -> Ids:
    """The first place of each row at which the running sum of weights exceeds the goal (or, `reaching`, equals it).

    With a goal of u * total, u uniform in [0, 1), this is the inverse of the cumulative distribution; a weight of zero
    is never chosen, because the running sum does not grow there.

    Args:
        weights: not negative. <float32>[b, W]
        sums: their bucket sums. <float64>[b, W / BUCKET]
        goal: <float64>[b]
    """
    each = np.arange(len(weights))
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
