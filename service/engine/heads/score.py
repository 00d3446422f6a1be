"""Rows whose prompts are weighed: each output says how probable the next id of the prompt is.

Axes: R max_rows, n active rows, N ids of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np

from carousel.service.engine.heads.head import RowsOfHead, Stepped
from carousel.service.engine.heads.journal import Journal, Targets
from carousel.service.engine.parameters import (
    FinishReason,
    Floats,
    HeadParameters,
    Ids,
    Result,
    ScoreParameters,
    Scores,
)
from carousel.service.engine.rows.plan import Doubles
from carousel.service.engine.rows.table import NOT_FINITE, RowTable
from carousel.service.engine.sampling.sampler import Sampler
from carousel.service.engine.sequence import Sequence
from carousel.service.engine.weighed_places import WeighedPlaces


@dataclass(slots=True)
class _Weighed:
    left: Ids
    """Ids to weigh after those of the chunk."""
    logprobs: list[Doubles] = field(default_factory=list)
    alternatives: WeighedPlaces = field(default_factory=WeighedPlaces)
    complete: bool = False


class Score(RowsOfHead):
    """A Head.

    Args:
        reads: the output that has logits.
        table: what rows have queued.
        sampler: weighs.
        max_rows: R.
    """

    takes: ClassVar[type[HeadParameters]] = ScoreParameters

    def __init__(self, reads: str, table: RowTable, sampler: Sampler, max_rows: int) -> None:
        self.alternatives = np.zeros(max_rows, np.int64)
        """How many each row wants to know."""
        super().__init__(max_rows)
        self._reads = reads
        self._table = table
        self._sampler = sampler
        self._targets = Targets(max_rows)
        self._logprobs = Journal(max_rows, ((), np.float64))
        self._weighed: dict[Sequence, _Weighed] = {}

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """See Head."""
        row, request = rows[0], sequence.request
        self.take(row)
        self.alternatives[row] = cast(ScoreParameters, request.head).alternatives
        start = sequence.consumed - int(self._table.filled[row])
        self._weighed[sequence] = _Weighed(request.prompt[start + 1 :])
        self._fill(row, sequence)

    def release(self, row: int, last: int) -> None:
        """See Head."""
        super().release(row, last)
        self._targets.release(row, last)
        self._logprobs.release(row, last)

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:
        """See Head."""
        weighed = self._weighed.pop(sequence)
        if not weighed.complete:
            return 0, None
        logprobs = np.concatenate([*weighed.logprobs, self._logprobs.drain(row)[0]])
        return 0, Scores(logprobs, weighed.alternatives)

    def after_step(self, step: Stepped) -> None:
        """See Head: weigh the next id of each prompt; a row whose output is not finite has ended."""
        n = len(step.ids)
        rows = np.flatnonzero(self.mine[:n])
        logits = cast(Floats, step.outputs[self._reads])
        values = self._sampler.score(logits[:n], rows, self._targets.next(rows))
        full = self._logprobs.note(rows, values)
        known = ~np.isnan(values)  # minus infinity: the impossible
        for row in rows[~known].tolist():
            step.ends.setdefault(row, (FinishReason.FAILED, NOT_FINITE))
        compared = rows[known & (self.alternatives[rows] > 0)]
        if len(compared):
            found = self._sampler.alternatives(logits, compared, self.alternatives[compared])
            for row, best in zip(compared.tolist(), found, strict=True):
                self._weighed[step.running[row]].alternatives.append(best)
        for row in full.tolist():
            sequence = step.running[row]
            self._weighed[sequence].logprobs.append(cast(Doubles, self._logprobs.drain(row)[0]))
            self._fill(row, sequence)
        for row in rows[step.done[rows]].tolist():
            if row not in step.ends:
                step.ends[row] = (FinishReason.STOP, "")
                self._weighed[step.running[row]].complete = True

    def _fill(self, row: int, sequence: Sequence) -> None:
        weighed = self._weighed[sequence]
        weighed.left = self._targets.fill(row, weighed.left)
