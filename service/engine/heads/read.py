"""Rows whose outputs are read as they are: what a tracing model says after each id.

Axes: R max_rows, n active rows, N ids of a prompt, O an output's size, K columns.
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
    Reading,
    ReadParameters,
    Result,
)
from carousel.service.engine.rows.table import NOT_FINITE, RowTable
from carousel.service.engine.sequence import Sequence

NO_TARGETS: Ids = np.zeros(0, np.int64)


@dataclass(slots=True)
class _Read:
    parameters: ReadParameters
    left: Ids
    """Targets after those of the chunk."""
    values: list[Floats] = field(default_factory=list)
    curve: list[Floats] = field(default_factory=list)
    outputs: list[Floats] = field(default_factory=list)
    """As many whole ones as can be wanted, and up to a piece more."""
    last: Floats | None = None
    """The last one, once there is no other to come. <float32>[O]"""

    def keep(self, outputs: Floats) -> None:
        """A piece of whole outputs. [at most C, O]"""
        if self.parameters.columns is not None:
            self.curve.append(outputs[:, self.parameters.columns])
        self.outputs.append(outputs)
        while sum(map(len, self.outputs[1:])) >= self.parameters.last:
            self.outputs.pop(0)


class Read(RowsOfHead):
    """A Head.

    Args:
        reads: the output that is read.
        table: what rows have queued.
        max_rows: R.
        size: O.
    """

    takes: ClassVar[type[HeadParameters]] = ReadParameters

    def __init__(self, reads: str, table: RowTable, max_rows: int, size: int) -> None:
        self.targeted = np.zeros(max_rows, np.bool_)
        """Which rows want a value after each id."""
        self.recording = np.zeros(max_rows, np.bool_)
        """Which rows want more than one output whole, or columns."""
        super().__init__(max_rows)
        self._reads = reads
        self._table = table
        self._targets = Targets(max_rows)
        self._values = Journal(max_rows, ((), np.float32))
        self._record = Journal(max_rows, ((size,), np.float32))
        self._read: dict[Sequence, _Read] = {}

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """See Head."""
        row, parameters = rows[0], cast(ReadParameters, sequence.request.head)
        self.take(row)
        self.targeted[row] = parameters.targets is not None
        self.recording[row] = parameters.columns is not None or parameters.last > 1
        start = sequence.consumed - int(self._table.filled[row])
        left = NO_TARGETS if parameters.targets is None else parameters.targets[start:]
        self._read[sequence] = _Read(parameters, self._targets.fill(row, left))

    def release(self, row: int, last: int) -> None:
        """See Head."""
        super().release(row, last)
        for columns in (self._targets, self._values, self._record):
            columns.release(row, last)

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:
        """See Head."""
        read = self._read.pop(sequence)
        if read.last is None:
            return 0, None
        if self.targeted[row]:
            read.values.append(cast(Floats, self._values.drain(row)[0]))
        if self.recording[row]:
            read.keep(cast(Floats, self._record.drain(row)[0]))
        reading = Reading(
            values=np.concatenate(read.values) if read.values else None,
            curve=np.concatenate(read.curve) if read.curve else None,
            outputs=np.concatenate(read.outputs)[-read.parameters.last :] if read.outputs else read.last[None],
        )
        return 0, reading

    def after_step(self, step: Stepped) -> None:
        """See Head: note what each row asks for; a row whose output is not finite has ended."""
        rows = np.flatnonzero(self.mine[: len(step.ids)])
        outputs = cast(Floats, step.outputs[self._reads])
        for row in rows[~np.isfinite(outputs[rows]).all(axis=1)].tolist():
            step.ends.setdefault(row, (FinishReason.FAILED, NOT_FINITE))
        targeted = rows[self.targeted[rows]]
        if len(targeted):
            values = outputs[targeted, self._targets.next(targeted)]
            for row in self._values.note(targeted, values).tolist():
                read = self._read[step.running[row]]
                read.values.append(cast(Floats, self._values.drain(row)[0]))
                read.left = self._targets.fill(row, read.left)
        recording = rows[self.recording[rows]]
        if len(recording):
            for row in self._record.note(recording, outputs[recording]).tolist():
                self._read[step.running[row]].keep(cast(Floats, self._record.drain(row)[0]))
        for row in rows[step.done[rows]].tolist():
            if row not in step.ends:
                step.ends[row] = (FinishReason.STOP, "")
                self._read[step.running[row]].last = outputs[row].copy()
