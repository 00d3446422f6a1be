"""The beams among the active rows: k rows each, forked after every step by copying states within the pool.

Slot i of a beam is the row of its live hypothesis i. A beam has all its rows from its first step to its last. While it
consumes its prompt, all do the same; where fewer than k hypotheses live, the slots that are over follow the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from carousel.service.engine.heads.beam import Beam
from carousel.service.engine.heads.head import RowsOfHead, Stepped
from carousel.service.engine.parameters import BeamParameters, FinishReason, Floats, Found, HeadParameters, Result
from carousel.service.engine.rows.table import NOT_FINITE, RowTable
from carousel.service.engine.sequence import Sequence
from carousel.service.engine.states.pool import StatePool


@dataclass(frozen=True, slots=True)
class _Search:
    beam: Beam
    rows: list[int]
    """Of each slot; the rows of a beam may lie anywhere."""


class Search(RowsOfHead):
    """A Head: which rows are whose, and their searches.

    Args:
        reads: the output that has logits.
        attends: the output that says where a step looked; None where there is none.
        table: where tokens are queued.
        pool: where states are forked.
        max_rows: that there are.
    """

    takes: ClassVar[type[HeadParameters]] = BeamParameters

    def __init__(self, reads: str, attends: str | None, table: RowTable, pool: StatePool, max_rows: int) -> None:
        super().__init__(max_rows)
        self._reads = reads
        self._attends = attends
        self._pool = pool
        self._table = table
        self._searches: dict[Sequence, _Search] = {}
        self._owners: dict[int, _Search] = {}
        """By row."""

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """See Head."""
        search = _Search(Beam(cast(BeamParameters, sequence.request.head)), list(rows))
        self._searches[sequence] = search
        for row in rows:
            self.take(row)
            self._owners[row] = search
        self._table.mirror(rows[0], np.array(rows[1:], np.intp))

    def release(self, row: int, last: int) -> None:
        """See Head."""
        super().release(row, last)
        self._owners.pop(row, None)
        search = self._owners.pop(last, None)
        if search is not None:
            search.rows[search.rows.index(last)] = row
            self._owners[row] = search

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:  # noqa: ARG002 (it has several)
        """See Head."""
        beam = self._searches.pop(sequence).beam
        return beam.length, Found(beam.hypotheses()) if beam.ended else None

    def after_step(self, step: Stepped) -> None:
        """See Head: extend every beam that has nothing left to consume, fork its rows and queue its tokens."""
        rows: list[int] = []
        parents: list[int] = []
        tokens: list[int] = []
        outputs = cast(Floats, step.outputs[self._reads])
        attends = self._attends
        attention = None if attends is None else cast(Floats, step.outputs[attends])
        for sequence, search in self._searches.items():
            slots, beam = search.rows, search.beam
            failed = [step.ends.pop(row) for row in slots if row in step.ends] if step.ends else []
            if failed:
                step.over.append((sequence, *failed[0]))
                continue
            if not step.done[slots[0]]:
                self._table.mirror(slots[0], np.array(slots[1:], np.intp))
                continue
            live = slots[: beam.live]
            maps = attention[live] if attention is not None and sequence.request.attention else None
            extension = beam.extend(outputs[live], maps)
            if extension is None:
                step.over.append((sequence, FinishReason.FAILED, NOT_FINITE))
                continue
            step.added += 1
            if beam.ended is not None:
                step.over.append((sequence, beam.ended, ""))
                continue
            spare = len(slots) - beam.live
            rows += slots
            parents += [slots[parent] for parent in extension[0]] + [slots[extension[0][0]]] * spare
            tokens += extension[1] + extension[1][:1] * spare
        if rows:
            self._pool.fork(np.array(rows, np.intp), np.array(parents, np.intp))
            self._table.push(np.array(rows, np.intp), np.array(tokens, np.int64))
