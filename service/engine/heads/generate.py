"""Rows that sample: each output is the next token's logits, and what is drawn from them is fed back.

Axes: R max_rows, n active rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np

from carousel.service.engine.heads.head import RowsOfHead, Stepped
from carousel.service.engine.parameters import FinishReason, Floats, HeadParameters, Result, Sampled, SamplingParameters
from carousel.service.engine.rows.plan import Mask, Rows
from carousel.service.engine.rows.sampling_table import SamplingTable
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE, RowEnds, RowTable
from carousel.service.engine.sampling.sampler import Sampler, Samples
from carousel.service.engine.sequence import Sequence, TokenBatch

NO_END = -1
"""No token's id: nothing that is sampled is the row's last by itself."""


@dataclass(frozen=True, slots=True)
class _Traits:
    """What some active row wants, worked out when a row joins or leaves: a step asks for no more than is wanted."""

    n: int
    mine: Mask | None
    """Which rows sample; None where all do. <bool>[n]"""
    buffered: Mask | None
    """Which rows are told at their end alone; None where none is. <bool>[n]"""
    ends: bool
    stops: bool
    attentive: bool


@dataclass(slots=True)
class _Buffer:
    """What a row has sampled that is told at its end alone."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    attention: list[Floats] = field(default_factory=list)


class Generate(RowsOfHead):
    """A Head.

    Args:
        reads: the output that has logits.
        attends: the output that says where a step looked; None where there is none.
        table: where tokens are queued.
        sampler: chooses them.
        max_rows: R.
        vocabulary_size: tokens there are.
    """

    takes: ClassVar[type[HeadParameters]] = SamplingParameters

    def __init__(
        self, reads: str, attends: str | None, table: RowTable, sampler: Sampler, max_rows: int, vocabulary_size: int
    ) -> None:
        self.max_tokens = np.zeros(max_rows, np.int64)
        self.last_token = np.zeros(max_rows, np.int64)
        """Which token is each row's last."""
        self.stops = np.zeros(max_rows, np.bool_)
        """Which rows ask after each token whether it is their last."""
        self.attentive = np.zeros(max_rows, np.bool_)
        """Which rows want to know where the model looked."""
        self.buffered = np.zeros(max_rows, np.bool_)
        """Which rows keep what they sample to their end."""
        self.untold = np.zeros(max_rows, np.bool_)
        """Which rows have checkpoints to tell with their first token."""
        super().__init__(max_rows)
        self.sampling = SamplingTable(table, max_rows, vocabulary_size)
        self._reads = reads
        self._attends = attends
        self._table = table
        self._sampler = sampler
        self._traits: _Traits | None = None
        self._any_untold = False
        """Whether there may be any."""
        self._buffers: dict[Sequence, _Buffer] = {}

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """See Head."""
        row, request = rows[0], sequence.request
        self.take(row)
        self._changed()
        sampling = cast(SamplingParameters, request.head)
        self.max_tokens[row] = sampling.max_tokens
        self.last_token[row] = NO_END if request.end is None else request.end
        self.stops[row] = request.stop is not None
        self.attentive[row] = request.attention
        self.buffered[row] = request.buffered
        self.untold[row] = bool(sequence.wanted) and not request.buffered
        self._any_untold |= bool(self.untold[row])
        if request.buffered:
            self._buffers[sequence] = _Buffer()
        behind = sequence.consumed - int(self._table.filled[row])
        self.sampling.acquire(row, sampling, request.prompt[:behind])

    def release(self, row: int, last: int) -> None:
        """See Head."""
        super().release(row, last)
        self.sampling.release(row, last)
        self._changed()

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:
        """See Head. What was told before is not told again."""
        added, buffer = int(self._table.added[row]), self._buffers.pop(sequence, None)
        if buffer is None:
            return added, None
        return added, Sampled(tuple(buffer.tokens), tuple(buffer.logprobs), tuple(buffer.attention))

    def after_step(self, step: Stepped) -> None:
        """See Head."""
        table, traits = self._table, self._find_traits(len(step.ids))
        self.sampling.mark_seen(step.ids)
        emits = step.done if traits.mine is None else step.done & traits.mine
        if step.ends:
            emits[list(step.ends)] = False
        if not emits.any():
            return
        logits = cast(Floats, step.outputs[self._reads])
        samples = self._sampler.sample(logits[: len(emits)], self.sampling, emits)
        if not samples.finite.all():
            for row in np.flatnonzero(emits & ~samples.finite).tolist():
                step.ends[row] = (FinishReason.FAILED, NOT_FINITE)
            emits &= samples.finite
        rows = np.flatnonzero(emits)
        tokens = samples.tokens[rows]
        table.push(rows, tokens)
        step.added += len(rows)
        if traits.buffered is None:
            step.batch = self._tell(rows, samples, step)
        else:
            buffered = traits.buffered[rows]
            step.batch = None if buffered.all() else self._tell(rows[~buffered], samples, step)
            self._keep(rows[buffered], samples, step)
        added = table.added[rows]
        for row in rows[added >= self.max_tokens[rows]].tolist():
            step.ends[row] = (FinishReason.LENGTH, "")
        if traits.ends:
            for row in rows[tokens == self.last_token[rows]].tolist():
                step.ends[row] = (FinishReason.STOP, "")
        if traits.stops:
            for row in rows[self.stops[rows]].tolist():
                self._ask_stop(row, step.running[row], step.ends)
        for row in rows[added % CHUNK == 0].tolist():
            if row not in step.ends:
                self.sampling.draw(row, cast(SamplingParameters, step.running[row].request.head))

    def _tell(self, rows: Rows, samples: Samples, step: Stepped) -> TokenBatch:
        """What these rows sampled."""
        maps = self._maps(step)
        return TokenBatch(
            ids=self._table.ids[rows].tolist(),
            tokens=samples.tokens[rows].tolist(),
            logprobs=samples.logprobs[rows].tolist(),
            alternatives={
                place: samples.alternatives[row]
                for place, row in enumerate(rows.tolist())
                if row in samples.alternatives
            }
            if samples.alternatives
            else {},
            attention={place: maps[rows[place]].copy() for place in np.flatnonzero(self.attentive[rows]).tolist()}
            if maps is not None
            else {},
            checkpoints={
                place: dict(step.running[rows[place]].checkpoints)
                for place in np.flatnonzero(self._newly_told(rows)).tolist()
            }
            if self._any_untold
            else {},
        )

    def _newly_told(self, rows: Rows) -> Mask:
        """Which of these rows have checkpoints to tell; from now on none of them has."""
        untold = self.untold[rows]
        self.untold[rows] = False
        self._any_untold = bool(self.untold.any())
        return untold

    def _keep(self, rows: Rows, samples: Samples, step: Stepped) -> None:
        """Let sequences that are told at their end alone remember what these rows sampled."""
        maps = self._maps(step)
        chosen = zip(rows.tolist(), samples.tokens[rows].tolist(), samples.logprobs[rows].tolist(), strict=True)
        for row, token, logprob in chosen:
            buffer = self._buffers[step.running[row]]
            buffer.tokens.append(token)
            buffer.logprobs.append(logprob)
            if maps is not None and self.attentive[row]:
                buffer.attention.append(maps[row].copy())

    def _maps(self, step: Stepped) -> Floats | None:
        """Where each row looked, if somebody wants to know and the model says. <float32>[n, rows, columns]"""
        if self._attends is None or not self._find_traits(len(step.ids)).attentive:
            return None
        return cast(Floats, step.outputs[self._attends])

    def _ask_stop(self, row: int, sequence: Sequence, ends: RowEnds) -> None:
        """Ask a sequence whether the token just sampled ends it. If what answers fails, its row fails and no other."""
        stop = sequence.request.stop
        assert stop is not None
        try:
            if stop(int(self._table.pending[row, 0])):
                ends[row] = (FinishReason.STOP, "")
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            ends[row] = (FinishReason.FAILED, f"{type(error).__name__}: {error}")

    def _find_traits(self, n: int) -> _Traits:
        if self._traits is None or self._traits.n != n:  # who joins another head is not told here
            self._traits = _Traits(
                n=n,
                mine=None if self.count == n else self.mine[:n].copy(),
                buffered=self.buffered[:n].copy() if self.buffered[:n].any() else None,
                ends=bool((self.mine[:n] & (self.last_token[:n] != NO_END)).any()),
                stops=bool(self.stops[:n].any()),
                attentive=bool(self.attentive[:n].any()),
            )
        return self._traits

    def _changed(self) -> None:
        self._traits = None
        self.sampling.changed()
