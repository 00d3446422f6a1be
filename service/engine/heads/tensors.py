"""Rows whose outputs are given as they are: any of the model's, after each step or after the last.

Axes: R max_rows, n active rows, N ids of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np

from carousel.service.engine.heads.head import RowsOfHead, Stepped
from carousel.service.engine.heads.journal import Journal
from carousel.service.engine.parameters import Array, FinishReason, HeadParameters, Result, TensorParameters, Tensors
from carousel.service.engine.rows.table import NOT_FINITE
from carousel.service.engine.sequence import Sequence
from carousel.service.engine.states.pool import StateSpec


class GiveTensors(RowsOfHead):
    """A Head.

    Args:
        outputs: the model's, by name.
        max_rows: R.
    """

    takes: ClassVar[type[HeadParameters]] = TensorParameters

    def __init__(self, outputs: Mapping[str, StateSpec], max_rows: int) -> None:
        self.each = np.zeros(max_rows, np.bool_)
        """Which rows want those of each step."""
        super().__init__(max_rows)
        self._names = tuple(outputs)
        self._journal = Journal(max_rows, *((spec.shape, spec.dtype) for spec in outputs.values()))
        self._floats = [name for name, spec in outputs.items() if np.issubdtype(spec.dtype, np.inexact)]
        self._pieces: dict[Sequence, dict[str, list[Array]]] = {}
        self._complete: set[Sequence] = set()

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """See Head."""
        parameters = cast(TensorParameters, sequence.request.head)
        self.take(rows[0])
        self.each[rows[0]] = parameters.each
        self._pieces[sequence] = {name: [] for name in parameters.outputs}

    def release(self, row: int, last: int) -> None:
        """See Head."""
        super().release(row, last)
        self._journal.release(row, last)

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:
        """See Head."""
        if self.each[row]:
            self._drain(row, sequence)
        pieces = self._pieces.pop(sequence)
        if sequence not in self._complete:
            return 0, None
        self._complete.remove(sequence)
        return 0, Tensors({name: np.concatenate(parts) for name, parts in pieces.items()})

    def after_step(self, step: Stepped) -> None:
        """See Head: a row of which an asked output is not finite has ended."""
        rows = np.flatnonzero(self.mine[: len(step.ids)])
        for name in self._floats:
            finite = np.asarray(np.isfinite(step.outputs[name][: len(step.ids)]))
            if not finite.all():
                sound = np.asarray(finite.reshape(len(finite), -1).all(axis=1))
                for row in rows[~sound[rows]].tolist():
                    if name in self._pieces[step.running[row]]:
                        step.ends.setdefault(row, (FinishReason.FAILED, NOT_FINITE))
        each = rows[self.each[rows]]
        if len(each):
            for row in self._journal.note(each, *[step.outputs[name][each] for name in self._names]).tolist():
                self._drain(row, step.running[row])
        for row in rows[step.done[rows]].tolist():
            if row in step.ends:
                continue
            step.ends[row] = (FinishReason.STOP, "")
            sequence = step.running[row]
            self._complete.add(sequence)
            if not self.each[row]:
                for name, pieces in self._pieces[sequence].items():
                    pieces.append(step.outputs[name][row : row + 1].copy())

    def _drain(self, row: int, sequence: Sequence) -> None:
        """Take what was noted of a row; what it did not ask for is forgotten."""
        for name, noted in zip(self._names, self._journal.drain(row), strict=True):
            if name in self._pieces[sequence]:
                self._pieces[sequence][name].append(noted)
