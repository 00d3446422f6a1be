"""Rows that sample nothing: texts that are weighed, histories that are read.

Axes: R max_rows, n active rows, O outputs of a step.
"""

from __future__ import annotations

from collections.abc import Sequence as List

import numpy as np

from carousel.service.engine.rows.plan import Doubles, Mask, Rows
from carousel.service.engine.rows.table import NOT_FINITE, Ended, RowTable
from carousel.service.engine.sampling.sampler import Sampler
from carousel.service.engine.sequence import FinishEvent, FinishReason, Floats, Ids, Reading, Sequence


class QuietRows:
    """What is noted of them after each step, chunk by chunk, and made of it at their end.

    Args:
        table: what the rows have queued, and where their values are noted.
        sampler: weighs.
        outputs: of the steps. <float32>[R, O]
    """

    def __init__(self, table: RowTable, sampler: Sampler, outputs: Floats) -> None:
        self._table = table
        self._sampler = sampler
        self._outputs = outputs

    def note(self, running: List[Sequence], ended: Ended) -> None:
        """After a step of all rows: weigh and read; rows whose outputs are not finite have ended."""
        self._score(running, ended)
        self._read(len(running), ended)

    def _score(self, running: List[Sequence], ended: Ended) -> None:
        """Weigh the next prompt id of each scoring row."""
        table, n = self._table, len(running)
        rows = np.flatnonzero(table.scoring[:n])
        if len(rows):
            cursor = table.cursor[rows]
            values = self._sampler.score(self._outputs[:n], rows, table.targets[rows, cursor])
            known = ~np.isnan(values)  # minus infinity: the impossible
            self._keep(rows, cursor, values, known, ended)
            compared = rows[known & table.comparing[rows]]
            asking = [running[row] for row in compared.tolist()]
            counts = np.array([sequence.alternatives for sequence in asking], np.int64)
            found = self._sampler.alternatives(self._outputs, compared, counts)
            for sequence, best in zip(asking, found, strict=True):
                sequence.beside.append(best)

    def _read(self, n: int, ended: Ended) -> None:
        """Read what each row with a readout asks for."""
        table = self._table
        rows = np.flatnonzero(table.reading[:n])
        if len(rows):
            cursor = table.cursor[rows]
            outputs = self._outputs[rows]
            values = self._outputs[rows, table.targets[rows, cursor]]
            finite = np.asarray(np.isfinite(outputs).all(axis=1))
            self._keep(rows, cursor, values, finite, ended)
        if table.record is not None:
            rows = np.flatnonzero(table.recording[:n])
            table.record[rows, table.cursor[rows]] = self._outputs[rows]

    def _keep(self, rows: Rows, cursor: Ids, values: Floats | Doubles, finite: Mask, ended: Ended) -> None:
        self._table.values[rows, cursor] = values
        for row in rows[~finite].tolist():
            ended.setdefault(row, (FinishReason.FAILED, NOT_FINITE))

    def collect(self, row: int, sequence: Sequence) -> None:
        """Take what was weighed or read in a chunk out of the table."""
        if not sequence.quiet:
            return
        table, count, readout = self._table, int(self._table.cursor[row]), sequence.readout
        if readout is None or readout.targets is not None:
            sequence.values.append(table.values[row, :count].copy())
        if readout is None or table.record is None or not table.recording[row]:
            return
        outputs = table.record[row, :count]
        if readout.columns is not None:
            sequence.curve.append(outputs[:, readout.columns])
        wanted = readout.last - (len(sequence.prompt) - sequence.eaten)  # of this chunk: the rest is still to come
        if wanted > 0:
            sequence.outputs.append(outputs[-wanted:].copy())

    def end(self, row: int, sequence: Sequence) -> FinishEvent:
        """The end of a sequence that has eaten all: its scores, or its reading."""
        self.collect(row, sequence)
        if sequence.readout is None:
            return FinishEvent(FinishReason.STOP, logprobs=np.concatenate(sequence.values))
        last = self._outputs[row : row + 1].copy()
        reading = Reading(
            values=np.concatenate(sequence.values).astype(np.float32) if sequence.values else None,
            curve=np.concatenate(sequence.curve) if sequence.curve else None,
            outputs=np.concatenate(sequence.outputs) if sequence.outputs else last,
        )
        return FinishEvent(FinishReason.STOP, reading=reading)
