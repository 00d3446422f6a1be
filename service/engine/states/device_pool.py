"""States that stay on a device: rows are chosen and moved there, and reach the host only where somebody wants a copy.

All moves are one: `rows[to] = source[from]`, by a graph without weights that knows rows as runs of 32-bit words,
whatever they mean. Its output is bound to the memory of its input, so that rows that do not move are not touched.
onnxruntime's kernels allow for that: what is gathered is a copy, and what is scattered goes over the rows in place.

Axes: n rows of an array, m of another, k that move, W words of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from carousel.service.engine.device import Device, DeviceArray, Tensor, address_of
from carousel.service.engine.parameters import Array
from carousel.service.engine.rows.plan import Rows
from carousel.service.engine.session import RunnerBroken, open_session
from carousel.service.engine.states.pool import Buffers, StateSpec, zeros

MOVE_GRAPH = Path(__file__).with_name("move_rows.onnx")
"""A Gather and a ScatterND of opset 17, no weights: int32[n, W] `rows`, int32[m, W] `source`, int64[k] `from` and
int64[k, 1] `to` in, int32[n, W] `moved` out."""

WORD = np.dtype(np.int32)


class RowMover:
    """Moves rows within a device's memory, and from the host into it."""

    def __init__(self, device: Device) -> None:
        self._session = open_session(MOVE_GRAPH.read_bytes(), "row", 1, device)

    def __call__(self, rows: DeviceArray, to: Rows, source: Tensor, taken: Rows) -> None:
        """`rows[to] = source[taken]`, where source may be rows too. Of `to` no row twice. [k] each"""
        binding = self._session.io_binding()
        place = _words(rows)
        target, chosen = np.ascontiguousarray(to[:, None], np.int64), np.ascontiguousarray(taken, np.int64)
        binding.bind_input("rows", *place)
        binding.bind_input("source", *_words(source))
        binding.bind_input("from", *address_of(chosen))
        binding.bind_input("to", *address_of(target))
        binding.bind_output("moved", *place)
        self._session.run_with_iobinding(binding)


class DevicePool(Buffers[DeviceArray]):
    """A StatePool in a device's memory. The last row of each array, beyond those of sequences, is zeros for ever.

    Raises:
        RunnerBroken: rows cannot be moved there, or there is not enough memory.
    """

    def __init__(
        self, device: Device, states: Mapping[str, StateSpec], context: Mapping[str, StateSpec], max_rows: int
    ) -> None:
        for name, spec in {**states, **context}.items():
            if spec.row_bytes % WORD.itemsize:
                raise RunnerBroken(
                    f"a row of {name} has {spec.row_bytes} bytes; rows that are moved on a device have a multiple of "
                    f"{WORD.itemsize}: pad the state, or serve the model on the CPU"
                )
        self._states = states
        self._move = RowMover(device)
        self._zeros = max_rows
        try:
            before = _filled(device, zeros(states, max_rows + 1))
            after = _filled(device, zeros(states, max_rows + 1))
            held = _filled(device, zeros(context, max_rows + 1))
            self._single = _filled(device, zeros(states, 1))
        except Exception as error:  # onnxruntime has no root error of its own
            raise RunnerBroken(f"no memory for {max_rows} rows on the device ({error})") from None
        super().__init__(before, after, held)

    def acquire(
        self, row: int, initial: Mapping[str, Array] | None, context: Mapping[str, Array] | None = None
    ) -> None:
        """See StatePool."""
        for arrays, given in ((self._before, initial), (self._context, context)):
            for name, array in arrays.items():
                if given is None:
                    self._move(array, _places(row), array, _places(self._zeros))
                else:
                    one = np.ascontiguousarray(given[name], array.dtype).reshape(1, *array.shape[1:])
                    self._move(array, _places(row), one, _places(0))

    def fork(self, rows: Rows, parents: Rows) -> None:
        """See StatePool."""
        for array in self._before.values():
            self._move(array, rows, array, parents)

    def load(self, rows: slice, states: Mapping[str, Array], context: Mapping[str, Array], places: Rows) -> None:
        """See StatePool."""
        to, taken = np.arange(rows.start, rows.stop), np.arange(len(places))
        for arrays, source in ((self._before, states), (self._context, context)):
            for name, array in arrays.items():
                self._move(array, to, source[name][places], taken)

    def host(self, rows: slice) -> Mapping[str, Array]:
        """See StatePool."""
        return {name: np.asarray(array) for name, array in self.before(rows).items()}

    def release(self, row: int, last: int) -> None:
        """See StatePool."""
        to = _places(last) if row == last else _places(row, last)
        taken = _places(self._zeros) if row == last else _places(last, self._zeros)
        for array in (*self._before.values(), *self._context.values()):
            self._move(array, to, array, taken)
        for array in self._after.values():
            self._move(array, _places(last), array, _places(self._zeros))

    def blank(self) -> dict[str, Array]:
        """See StatePool."""
        return {name: array[0] for name, array in zeros(self._states, 1).items()}

    def snapshot(self, row: int) -> dict[str, Array]:
        """See StatePool."""
        for name, array in self._before.items():
            self._move(self._single[name], _places(0), array, _places(row))
        return {name: np.array(np.asarray(array)[0]) for name, array in self._single.items()}


def _filled(device: Device, arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
    """Copies of these arrays on the device."""
    copies = {name: DeviceArray.empty(device, array.shape, array.dtype) for name, array in arrays.items()}
    for name, copy in copies.items():
        copy.fill(arrays[name])
    return copies


def _places(*rows: int) -> Rows:
    return np.array(rows, np.intp)


def _words(tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    """Like address_of, with each row as words. int32[n, W]"""
    memory, number, kind, shape, address = address_of(tensor)
    words = int(np.prod(shape[1:])) * np.dtype(kind).itemsize // WORD.itemsize
    return memory, number, WORD.type, (shape[0], words), address
