"""What the engine knows of each active row, as parallel arrays, so that a step never loops over sequences.

Row r of every array belongs to the sequence in row r of the state pool. Ids wait in `pending`, CHUNK at a time: prompt
ids, then one added id after another, so that prefill, decode, scoring and tracing are the same thing to a step. What is
one head's own is in arrays of its own (engine/heads).

Axes: R max_rows, n active rows, C chunk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import FinishReason, Ids
from carousel.service.engine.rows.plan import Mask, Rows
from carousel.service.engine.sequence import Sequence

CHUNK = 128
"""Ids (and random numbers) that a row holds ready; a row is visited in Python once per chunk, not once per step."""

NOT_FINITE = "the outputs were not finite"

RowEnds = dict[int, tuple[FinishReason, str]]
"""Rows that end with a step, and why."""


class Columns:
    """Parallel arrays of one entry a row: rows 0 to n - 1 are active, and the caller keeps them compact."""

    def __init__(self) -> None:
        self._columns: list[npt.NDArray[np.generic]] = [
            value for value in vars(self).values() if isinstance(value, np.ndarray)
        ]

    def release(self, row: int, last: int) -> None:
        """Take a row back: the last active row moves into its place, and what is free holds zeros again."""
        for array in self._columns:
            if row != last:
                array[row] = array[last]
            array[last] = 0


class RowTable(Columns):
    """What rows consume, whatever becomes of the outputs."""

    def __init__(self, max_rows: int) -> None:
        self.ids = np.zeros(max_rows, np.int64)
        """Of the sequences."""
        self.pending = np.zeros((max_rows, CHUNK), np.int64)
        self.cursor = np.zeros(max_rows, np.int64)
        self.filled = np.zeros(max_rows, np.int64)
        self.unfilled = np.zeros(max_rows, np.int64)
        """Prompt ids that do not lie in `pending` yet."""
        self.added = np.zeros(max_rows, np.int64)
        """Ids that were added to the prompt."""
        super().__init__()
        self.range = np.arange(max_rows)

    def acquire(self, row: int, sequence: Sequence) -> None:
        """Fill a row for a sequence that joins."""
        self.ids[row] = sequence.id
        self.added[row] = 0
        self.fill(row, sequence)

    def fill(self, row: int, sequence: Sequence) -> None:
        """Put the next chunk of the prompt into a row that has consumed the last one, up to the next checkpoint."""
        request, start = sequence.request, sequence.consumed
        end = len(request.prompt) - request.head.targets_only
        stop = min((at for at in sequence.wanted if at > start), default=end)
        chunk = request.prompt[start : min(stop, end, start + CHUNK)]
        self.pending[row, : len(chunk)] = chunk
        self.cursor[row] = 0
        self.filled[row] = len(chunk)
        sequence.consumed += len(chunk)
        self.unfilled[row] = end - sequence.consumed

    def next_ids(self, n: int) -> Ids:
        """What each active row consumes in this step. <int64>[n]"""
        return self.pending[self.range[:n], self.cursor[:n]]

    def advance(self, n: int) -> None:
        """One id of each active row is consumed."""
        self.cursor[:n] += 1

    def empty(self, n: int) -> Mask:
        """Which active rows have nothing left to consume in their chunk. <bool>[n]"""
        return np.equal(self.cursor[:n], self.filled[:n])

    def push(self, rows: Rows, ids: Ids) -> None:
        """Add an id to the prompt of each of these (empty) rows."""
        self.pending[rows, 0] = ids
        self.cursor[rows] = 0
        self.filled[rows] = 1
        self.added[rows] += 1

    def mirror(self, row: int, others: Rows) -> None:
        """Let other rows of the same beam consume next what this one consumes."""
        self.push(others, np.broadcast_to(self.pending[row, self.cursor[row]], len(others)))

    def pending_ids(self, row: int) -> Ids:
        """A copy of what a row has queued and not consumed."""
        return self.pending[row, self.cursor[row] : self.filled[row]].copy()
