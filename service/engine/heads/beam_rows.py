"""The beams among the active rows: k rows each, forked after every step by copying states within the pool.

Slot i of a beam is the row of its live hypothesis i. A beam has all its rows from its first step to its last. While it
eats its prompt, all do the same; where fewer than k hypotheses live, the slots that are over follow the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carousel.service.engine.heads.beam import Beam
from carousel.service.engine.rows.plan import Mask
from carousel.service.engine.rows.table import NOT_FINITE, Ended, RowTable
from carousel.service.engine.sequence import FinishReason, Floats, Sequence
from carousel.service.engine.states.pool import StatePool


@dataclass(frozen=True, slots=True)
class _Search:
    beam: Beam
    rows: list[int]
    """Of each slot; the rows of a beam may lie anywhere."""


class BeamRows:
    """Which rows are whose, and their searches. The caller keeps rows compact and tells of each that moves."""

    def __init__(self, pool: StatePool, table: RowTable) -> None:
        self._pool = pool
        self._table = table
        self._searches: dict[Sequence, _Search] = {}

    def __len__(self) -> int:
        """How many beams there are."""
        return len(self._searches)

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """Fill the rows, whose states are in the pool, for a beam that joins."""
        assert sequence.beam is not None
        self._searches[sequence] = _Search(Beam(sequence.beam), list(rows))
        self._table.acquire(rows[0], sequence)
        self._table.mirror(rows[0], np.array(rows[1:], np.intp))

    def rows_of(self, sequence: Sequence) -> list[int]:
        """The rows of a beam that leaves, from the last on: in this order they can be freed one by one."""
        return sorted(self._searches[sequence].rows, reverse=True)

    def release(self, sequence: Sequence) -> Beam:
        """Forget a beam, whose rows are free; returns what it found."""
        return self._searches.pop(sequence).beam

    def move(self, row: int, last: int, owner: Sequence) -> None:
        """The last row, which is the owner's, has taken the place of `row`."""
        search = self._searches.get(owner)
        if search is not None:
            search.rows[search.rows.index(last)] = row

    def advance(
        self, outputs: Floats, attention: Floats | None, done: Mask, ended: Ended
    ) -> tuple[int, list[tuple[Sequence, FinishReason, str]]]:
        """After a step: extend every beam that has nothing left to eat, fork its rows and queue its tokens.

        Args:
            outputs: <float32>[n, V]
            attention: <float32>[n, rows, columns]
            done: which rows have nothing left to eat; those of beams are taken out. <bool>[n]
            ended: rows that failed; those of beams are taken out, and their beams with them.

        Returns:
            How many beams grew by a token, and which are over, with the reason.
        """
        rows: list[int] = []
        parents: list[int] = []
        tokens: list[int] = []
        grown, over = 0, list[tuple[Sequence, FinishReason, str]]()
        for sequence, search in self._searches.items():
            slots, beam = search.rows, search.beam
            failed = [ended.pop(row) for row in slots if row in ended] if ended else []
            ready = bool(done[slots[0]])
            done[slots] = False
            if failed:
                over.append((sequence, *failed[0]))
                continue
            if not ready:
                self._table.mirror(slots[0], np.array(slots[1:], np.intp))
                continue
            live = slots[: beam.live]
            maps = attention[live] if attention is not None and sequence.attention else None
            extension = beam.extend(outputs[live], maps)
            if extension is None:
                over.append((sequence, FinishReason.FAILED, NOT_FINITE))
                continue
            grown += 1
            if beam.ended is not None:
                over.append((sequence, beam.ended, ""))
                continue
            spare = len(slots) - beam.live
            rows += slots
            parents += [slots[parent] for parent in extension[0]] + [slots[extension[0][0]]] * spare
            tokens += extension[1] + extension[1][:1] * spare
        if rows:
            self._pool.fork(np.array(rows, np.intp), np.array(parents, np.intp))
            self._table.push(np.array(rows, np.intp), np.array(tokens, np.int64))
        return grown, over
