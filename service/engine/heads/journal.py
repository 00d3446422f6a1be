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
    """One entry a step of each row that keeps one, of one kind or of several that are noted together.

    The memory is taken when the first row does.

    Args:
        max_rows: R.
        kinds: shape and type of an entry of each.
    """

    def __init__(self, max_rows: int, *kinds: tuple[tuple[int, ...], npt.DTypeLike]) -> None:
        self.cursor = np.zeros(max_rows, np.int64)
        super().__init__()
        self._max_rows = max_rows
        self._kinds = kinds
        self._entries: list[Array] | None = None

    def note(self, rows: Rows, *values: Array) -> Rows:
        """Add an entry of each kind to each of these rows; which are to be drained before the next. [r, ...] each"""
        if self._entries is None:
            self._entries = [np.zeros((self._max_rows, CHUNK, *shape), dtype) for shape, dtype in self._kinds]
        at = self.cursor[rows]
        for entries, value in zip(self._entries, values, strict=True):
            entries[rows, at] = value
        at += 1
        self.cursor[rows] = at
        full: Rows = rows[at == CHUNK]
        return full

    def drain(self, row: int) -> list[Array]:
        """What was noted of a row since the last time, copied, by kind. [at most C, ...] each"""
        count = int(self.cursor[row])
        self.cursor[row] = 0
        if self._entries is None:
            return [np.zeros((0, *shape), dtype) for shape, dtype in self._kinds]
        return [entries[row, :count].copy() for entries in self._entries]

    def release(self, row: int, last: int) -> None:
        """See Columns."""
        if self._entries is not None and row != last:
            count = int(self.cursor[last])
            for entries in self._entries:
                entries[row, :count] = entries[last, :count]
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
