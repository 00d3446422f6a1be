"""Where recurrent states live: one row per sequence, active rows kept compact.

Each state has two arrays of max_rows rows. A step reads the first n rows of one (`before`) and writes the first n rows
of the other (`after`); then they change places. So a step's outputs are the next step's inputs without a copy, and a
step that fails half-way has not touched what it read. Context, which steps read and never write, has one array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from carousel.service.engine.device import DeviceArray, Tensor
from carousel.service.engine.parameters import Array

Held = TypeVar("Held", Array, DeviceArray)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """The shape of one row of a state, of context or of a port, without the batch axis, and its numpy element type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class StatePool(Protocol):
    """Rows of recurrent state, and of context where a model has any, on the host (HostPool) or a device (DevicePool).

    The caller decides which rows are active; rows 0 to n - 1 are what a step sees.
    """

    swapped: bool
    """Which of the two arrays is read: it tells one from the other."""

    def before(self, rows: slice) -> Mapping[str, Tensor]:
        """What the next step of these rows reads. [n, ...] each"""
        ...

    def after(self, rows: slice) -> Mapping[str, Tensor]:
        """What the next step of these rows writes. [n, ...] each"""
        ...

    def context(self, rows: slice) -> Mapping[str, Tensor]:
        """What every step of these rows reads. [n, ...] each"""
        ...

    def swap(self) -> None:
        """After a step that succeeded: what it wrote is what the next one reads."""
        ...

    def acquire(
        self, row: int, initial: Mapping[str, Array] | None, context: Mapping[str, Array] | None = None
    ) -> None:
        """Give a row to a new sequence: zeros, or the state it goes on from and the context it has."""
        ...

    def fork(self, rows: npt.NDArray[np.intp], parents: npt.NDArray[np.intp]) -> None:
        """Let each of `rows` go on from the state of the row in the same place of `parents`. [r] each

        Rows may trade places. Context stays: a sequence's rows all have the same.
        """
        ...

    def load(
        self,
        rows: slice,
        states: Mapping[str, Array],
        context: Mapping[str, Array],
        places: npt.NDArray[np.intp],
    ) -> None:
        """Let rows behind the active ones begin the next step, and no other, with rows of these arrays. [k]"""
        ...

    def host(self, rows: slice) -> Mapping[str, Array]:
        """What the next step of these rows would read, on the host, until there is one. [k, ...] each"""
        ...

    def release(self, row: int, last: int) -> None:
        """Take a row back: the last active row moves into its place, and what is free holds zeros again."""
        ...

    def blank(self) -> dict[str, Array]:
        """One row of zeros of every state."""
        ...

    def snapshot(self, row: int) -> dict[str, Array]:
        """A copy on the host of one row of every state."""
        ...


class Buffers(Generic[Held]):
    """What every StatePool holds: two arrays for each state, which change places, and one for each part of context."""

    def __init__(self, before: dict[str, Held], after: dict[str, Held], context: dict[str, Held]) -> None:
        self._before: dict[str, Held] = before
        self._after: dict[str, Held] = after
        self._context: dict[str, Held] = context
        self.swapped = False

    def before(self, rows: slice) -> dict[str, Held]:
        """See StatePool."""
        return {name: array[rows] for name, array in self._before.items()}

    def after(self, rows: slice) -> dict[str, Held]:
        """See StatePool."""
        return {name: array[rows] for name, array in self._after.items()}

    def context(self, rows: slice) -> dict[str, Held]:
        """See StatePool."""
        return {name: array[rows] for name, array in self._context.items()}

    def swap(self) -> None:
        """See StatePool."""
        self._before, self._after = self._after, self._before
        self.swapped = not self.swapped


class HostPool(Buffers[Array]):
    """A StatePool of numpy arrays."""

    def __init__(self, states: Mapping[str, StateSpec], context: Mapping[str, StateSpec], max_rows: int) -> None:
        super().__init__(zeros(states, max_rows), zeros(states, max_rows), zeros(context, max_rows))

    def acquire(
        self, row: int, initial: Mapping[str, Array] | None, context: Mapping[str, Array] | None = None
    ) -> None:
        """See StatePool."""
        for name, array in self._before.items():
            array[row] = 0 if initial is None else initial[name]
        for name, array in self._context.items():
            array[row] = 0 if context is None else context[name]

    def fork(self, rows: npt.NDArray[np.intp], parents: npt.NDArray[np.intp]) -> None:
        """See StatePool."""
        for array in self._before.values():
            array[rows] = array[parents]  # the right side is copied first: rows may trade places

    def load(
        self,
        rows: slice,
        states: Mapping[str, Array],
        context: Mapping[str, Array],
        places: npt.NDArray[np.intp],
    ) -> None:
        """See StatePool."""
        for arrays, source in ((self._before, states), (self._context, context)):
            for name, array in arrays.items():
                source[name].take(places, 0, array[rows], "clip")  # which copies them straight to where they go

    def host(self, rows: slice) -> Mapping[str, Array]:
        """See StatePool."""
        return self.before(rows)

    def release(self, row: int, last: int) -> None:
        """See StatePool."""
        for array in (*self._before.values(), *self._context.values()):
            if row != last:
                array[row] = array[last]
            array[last] = 0
        for array in self._after.values():
            array[last] = 0

    def blank(self) -> dict[str, Array]:
        """See StatePool."""
        return {name: np.zeros_like(array[0]) for name, array in self._before.items()}

    def snapshot(self, row: int) -> dict[str, Array]:
        """See StatePool."""
        return {name: np.array(array[row]) for name, array in self._before.items()}  # a row may be a number


def zeros(specs: Mapping[str, StateSpec], rows: int) -> dict[str, Array]:
    """Rows of zeros of each. [rows, ...] each"""
    return {name: np.zeros((rows, *spec.shape), spec.dtype) for name, spec in specs.items()}
