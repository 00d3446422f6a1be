"""What rows are fed where they are fed no ids: rows of every input, as many as a request has steps.

Such a request's prompt are the numbers of its steps: who wants to know how far it came counts them as ids. A model
without inputs goes on by itself, for as many steps as it is told.

Axes: R max_rows, n active rows, N steps of a request, C steps of a piece.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from collections.abc import Sequence as List

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.rows.table import CHUNK, Columns
from carousel.service.engine.sequence import Sequence
from carousel.service.engine.states.pool import StateSpec

PIECE_BYTES = 1 << 16
"""Of a row, at most, that lie ready (but one step always does): a row is visited in Python once a piece."""


def fed_steps(
    specs: Mapping[str, StateSpec],
    inputs: Mapping[str, npt.ArrayLike],
    steps: int | None = None,
    non_finite: Container[str] = (),
) -> tuple[Ids, Mapping[str, Array]]:
    """A request's prompt, and its inputs as a model takes them.

    Args:
        specs: the model's inputs.
        inputs: a row of each for each step. [N, ...] each
        steps: N; not needed where there are inputs.
        non_finite: which may hold NaN and infinity.

    Returns:
        The numbers of the steps <int64>[N], and the inputs in the model's types. [N, ...] each

    Raises:
        ValueError: an input is missing, unknown, of another shape or of a type that the model's cannot hold, or their
            lengths differ; or there is no step.
    """
    names = ", ".join(specs) or "none"
    for name in inputs:
        if name not in specs:
            raise ValueError(f"there is no input {name!r}; inputs are {names}")
    fed = {}
    for name, spec in specs.items():
        if name not in inputs:
            raise ValueError(f"input {name!r} is missing; inputs are {names}")
        given = np.asarray(inputs[name])
        if given.shape[1:] != spec.shape or not given.ndim:
            raise ValueError(f"input {name!r} is {_shown(given.shape)}; allowed is {_shown(('steps', *spec.shape))}")
        fed[name] = as_port(name, given, spec.dtype, non_finite=name in non_finite)
        if steps is None:
            steps = len(given)
        if len(given) != steps:
            raise ValueError(f"input {name!r} has {len(given):,} steps; the others have {steps:,}")
    if steps is None or steps < 1:
        raise ValueError(f"there are {steps or 'no'} steps; allowed is 1 or more")
    return np.arange(steps), fed


def steps_as_bytes(inputs: Mapping[str, Array]) -> npt.NDArray[np.void]:
    """All that is fed in each step: steps that are fed the same have the same bytes. [N]"""
    rows = [np.ascontiguousarray(given).reshape(len(given), -1).view(np.uint8) for given in inputs.values()]
    steps = np.concatenate(rows, axis=1)  # [N, bytes]
    return steps.view(f"V{steps.shape[1]}")[:, 0]


class Feed(Columns):
    """Writes what each row is fed before each step.

    Args:
        inputs: what the model is fed, to be written to. [R, ...] each
        max_rows: R.
    """

    def __init__(self, inputs: Mapping[str, Array], max_rows: int) -> None:
        self.cursor = np.zeros(max_rows, np.int64)
        self.filled = np.zeros(max_rows, np.int64)
        super().__init__()
        self._inputs = inputs
        row_bytes = sum(array[:1].nbytes for array in inputs.values())
        self._length = max(1, min(CHUNK, PIECE_BYTES // max(1, row_bytes)))
        self._first = np.arange(max_rows) * self._length
        self._pieces: dict[str, Array] = {}
        """[R, C, ...] each. Taken when the first row is fed."""
        self._steps: dict[str, Array] = {}
        """The same, [R C, ...] each."""

    def write(self, places: Ids, running: List[Sequence]) -> None:
        """Before a step: each row is fed its request's step of that number.

        Args:
            places: the number. <int64>[n]
            running: whose rows they are. [n]
        """
        n = len(places)
        cursor = self.cursor[:n]
        empty = np.flatnonzero(cursor == self.filled[:n])
        if len(empty):
            for row in empty.tolist():
                self._fill(row, running[row].request.inputs, int(places[row]))
        places = self._first[:n] + cursor
        for name, array in self._inputs.items():
            self._steps[name].take(places, 0, array[:n], "clip")  # which copies them straight to where they go
        cursor += 1

    def release(self, row: int, last: int) -> None:
        """See Columns."""
        if row != last:
            rest = slice(int(self.cursor[last]), int(self.filled[last]))
            for piece in self._pieces.values():
                piece[row, rest] = piece[last, rest]
        super().release(row, last)

    def _fill(self, row: int, inputs: Mapping[str, Array], start: int) -> None:
        if not self._pieces:
            for name, array in self._inputs.items():
                piece = self._pieces[name] = np.zeros((len(array), self._length, *array.shape[1:]), array.dtype)
                self._steps[name] = piece.reshape(-1, *array.shape[1:])
        count = 0
        for name, piece in self._pieces.items():
            steps = inputs[name][start : start + self._length]
            count = len(steps)
            piece[row, :count] = steps
        self.cursor[row], self.filled[row] = 0, count


def as_port(name: str, given: Array, dtype: str, *, non_finite: bool = False) -> Array:
    """Numbers in the type of a port.

    Raises:
        ValueError: they are of another kind, or the type has not all of them.
    """
    if not np.can_cast(given.dtype, dtype, "same_kind"):
        raise ValueError(f"input {name!r} is {given.dtype}; allowed is {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast: Array = np.ascontiguousarray(given, dtype)
    whole = cast.dtype.kind in "iu"
    if whole and (cast != given).any():
        raise ValueError(f"input {name!r} holds a number that {dtype} has not")
    if cast.dtype.kind == "f" and not non_finite and not np.isfinite(cast).all():
        raise ValueError(f"input {name!r} holds a number that is not finite in {dtype}")
    return cast


def _shown(shape: List[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
