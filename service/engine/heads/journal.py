"""Numbers noted of some rows after each step, in pieces: a row is visited in Python once a piece.

Axes: R max_rows, r of them, C chunk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.rows.plan import Rows
from carousel.service.engine.rows.table import CHUNK, Columns


class Journal(Columns):
    """One entry a step of each row that keeps one. The memory is taken when the first row does.

    Args:
        max_rows: R.
        shape: of an entry.
        dtype: of its elements.
    """

    def __init__(self, max_rows: int, shape: tuple[int, ...] = (), dtype: npt.DTypeLike = np.float64) -> None:
        self.cursor = np.zeros(max_rows, np.int64)
        super().__init__()
        self._shape = (max_rows, CHUNK, *shape)
        self._dtype = dtype
        self._entries: Array | None = None

    def note(self, rows: Rows, values: Array) -> Rows:
        """Add an entry to each of these rows; which of them are to be drained before the next. [r, ...]"""
        if self._entries is None:
            self._entries = np.zeros(self._shape, self._dtype)
        at = self.cursor[rows]
        self._entries[rows, at] = values
        at += 1
        self.cursor[rows] = at
        full: Rows = rows[at == CHUNK]
        return full

    def drain(self, row: int) -> Array:
        """What was noted of a row since the last time, copied. [at most C, ...]"""
        count = int(self.cursor[row])
        self.cursor[row] = 0
        if self._entries is None:
            return np.zeros((0, *self._shape[2:]), self._dtype)
        return self._entries[row, :count].copy()

    def release(self, row: int, last: int) -> None:
        """See Columns."""
        if self._entries is not None and row != last:
            count = int(self.cursor[last])
            self._entries[row, :count] = self._entries[last, :count]
        super().release(row, last)


class Targets(Columns):
    """An id for each step of some rows, of arrays that are as long as their prompts."""

    def __init__(self, max_rows: int) -> None:
        self.ids = np.zeros((max_rows, CHUNK), np.int64)
        self.cursor = np.zeros(max_rows, np.int64)
        super().__init__()

    def fill(self, row: int, ids: Ids) -> Ids:
        """Give a row those of its next steps, and take back what is left after CHUNK of them. <int64>[any]"""
        chunk = ids[:CHUNK]
        self.ids[row, : len(chunk)] = chunk
        self.cursor[row] = 0
        return ids[CHUNK:]

    def next(self, rows: Rows) -> Ids:
        """Those of this step. <int64>[r]"""
        cursor = self.cursor[rows]
        self.cursor[rows] += 1
        return self.ids[rows, cursor]
