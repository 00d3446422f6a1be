"""Where recurrent states live: one row per sequence, active rows kept compact.

Each state has two arrays of max_rows rows. A step reads the first n rows of one (`before`) and writes the first n rows
of the other (`after`); then they change places. So a step's outputs are the next step's inputs without a copy, and a
step that fails half-way has not touched what it read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.engine.sequence import Array


@dataclass(frozen=True, slots=True)
class StateSpec:
    """The shape of one row of a state, without the batch axis, and its numpy element type."""

    shape: tuple[int, ...]
    dtype: str


class StatePool:
    """Rows of recurrent state. The caller decides which rows are active; rows 0 to n - 1 are what a step sees."""

    def __init__(self, specs: Mapping[str, StateSpec], max_rows: int) -> None:
        self._before = _zeros(specs, max_rows)
        self._after = _zeros(specs, max_rows)
        self.swapped = False
        """Which of the two arrays is read: it tells one from the other."""

    def before(self, rows: slice) -> dict[str, Array]:
        """What the next step of these rows reads. [n, ...] each"""
        return {name: array[rows] for name, array in self._before.items()}

    def after(self, rows: slice) -> dict[str, Array]:
        """What the next step of these rows writes. [n, ...] each"""
        return {name: array[rows] for name, array in self._after.items()}

    def swap(self) -> None:
        """After a step that succeeded: what it wrote is what the next one reads."""
        self._before, self._after = self._after, self._before
        self.swapped = not self.swapped

    def acquire(self, row: int, initial: Mapping[str, Array] | None) -> None:
        """Give a row to a new sequence: zeros, or the state it goes on from."""
        for name, array in self._before.items():
            array[row] = 0 if initial is None else initial[name]

    def release(self, row: int, last: int) -> None:
        """Take a row back: the last active row moves into its place, and what is free holds zeros again."""
        for array in self._before.values():
            if row != last:
                array[row] = array[last]
            array[last] = 0
        for array in self._after.values():
            array[last] = 0

    def blank(self) -> dict[str, Array]:
        """One row of zeros of every state."""
        return {name: np.zeros_like(array[0]) for name, array in self._before.items()}

    def snapshot(self, row: int) -> dict[str, Array]:
        """A copy of one row of every state."""
        return {name: array[row].copy() for name, array in self._before.items()}


def _zeros(specs: Mapping[str, StateSpec], max_rows: int) -> dict[str, Array]:
    return {name: np.zeros((max_rows, *spec.shape), spec.dtype) for name, spec in specs.items()}
