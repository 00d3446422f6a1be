"""A network run on made-up inputs, to find out what its file does not say.

Axes are found by running: a batch of three rows must give what the three give alone; a time axis is one along which an
output grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Port:
    """An input: what its file says, and what has been found out.

    Args:
        name: as in the file.
        dtype: of its elements.
        sizes: of its axes; None where free.
        symbols: what the file calls its free axes; empty where it calls them nothing.
        batch: the axis of rows; None before it is known.
        time: the axis of steps; None where it has none.
        counts: whether it says how many steps each row has.
    """

    name: str
    dtype: np.dtype[np.generic]
    sizes: tuple[int | None, ...]
    symbols: tuple[str, ...]
    batch: int | None = None
    time: int | None = None
    counts: bool = False

    def shape(self, rows: int, steps: int = 1) -> tuple[int, ...]:
        """Of an array for so many rows and steps."""
        sizes = [1 if size is None else size for size in self.sizes]
        if self.batch is not None:
            sizes[self.batch] = rows
        if self.time is not None:
            sizes[self.time] = steps
        return tuple(sizes)

    @property
    def row(self) -> tuple[int, ...]:
        """Of a row at one step: without the axes of batch and time."""
        return tuple(size or 1 for axis, size in enumerate(self.sizes) if axis not in (self.batch, self.time))

    @property
    def free(self) -> list[int]:
        """Axes of which nobody has said the size."""
        return [axis for axis, size in enumerate(self.sizes) if size is None and axis not in (self.batch, self.time)]


def ports_of(model: onnx.ModelProto) -> list[Port]:
    """The inputs of a network, as its file tells them."""
    ports = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
        symbols = tuple(dim.dim_param for dim in tensor.shape.dim)
        ports.append(Port(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes, symbols))
    return ports


def row_ports(model: onnx.ModelProto) -> list[Port]:
    """The inputs of a step graph: rows first."""
    ports = []
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        sizes = (None, *(dim.dim_value for dim in dims[1:]))
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        ports.append(Port(value.name, dtype, sizes, (), 0))
    return ports


class Trial:
    """A network in onnxruntime, on one thread.

    Args:
        model: the network.
        plain: without any optimisation, so that an error names a node of the file.

    Raises:
        Exception: whatever onnxruntime raises.
    """

    def __init__(self, model: onnx.ModelProto, *, plain: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {value.name for value in self._session.get_inputs()}

    def __call__(self, feeds: Arrays) -> dict[str, Array]:
        """Every output by name. It raises whatever onnxruntime raises."""
        fed = {name: array for name, array in feeds.items() if name in self._inputs}
        return dict(zip(self.outputs, self._session.run(self.outputs, fed), strict=True))


def require_memory(error: Exception) -> None:
    """Hold that an error is not for want of memory, which is the fault of the bound and of nothing in the file.

    Raises:
        MemoryError: it is.
    """
    if isinstance(error, MemoryError) or any(
        word in str(error) for word in ("bad_alloc", "bad allocation", "allocate memory")
    ):
        raise MemoryError(str(error).splitlines()[0]) from None


def made_up(random: np.random.Generator, port: Port, rows: int, steps: int = 1) -> Array:
    """Values that any network may be given: small numbers, ids of a vocabulary of two, masks that hide some."""
    shape = port.shape(rows, steps)
    if port.counts:
        return np.full(shape, steps, port.dtype)
    if port.dtype.kind == "f":
        return (0.3 * random.standard_normal(shape)).astype(port.dtype)
    values = random.integers(0, 2, shape).astype(port.dtype)
    if port.dtype.kind == "b":  # of a mask, neither all nor nothing is hidden, whichever it calls so
        values[..., :1], values[..., 1:2] = True, False
    return values


def take(array: Array, axis: int | None, place: int) -> Array:
    """One place along an axis, which is kept; the whole where there is no axis."""
    return array if axis is None else np.take(array, [place], axis=axis)


def distance(one: Array, other: Array) -> float:
    """The largest difference; infinite where shapes differ or a value is no number."""
    if one.shape != other.shape:
        return np.inf
    difference = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    return float(difference.max(initial=0.0)) if np.isfinite(difference).all() else np.inf


def axis_of(small: Sequence[int], large: Sequence[int], factor: int) -> int | None:
    """The one axis that is `factor` times as long in the second shape; None where there is none, or another differs."""
    if len(small) != len(large):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 and large[grown[0]] == factor * small[grown[0]] else None
