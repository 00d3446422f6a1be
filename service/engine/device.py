"""Memory of a device, and arrays that lie there: what onnxruntime binds without a copy through the host.

Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt
import onnxruntime

from carousel.service.engine.parameters import Array


@dataclass(frozen=True, slots=True)
class Device:
    """Where graphs run and states live.

    Args:
        memory: as onnxruntime calls it: `cuda`, or `cpu`, which lets all this run where there is no other.
        provider: the execution provider that computes there.
        options: of the provider.
    """

    memory: str
    provider: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """What the installed onnxruntime lacks; None where it has the provider, whatever the machine has."""
        there = onnxruntime.get_available_providers()
        if self.provider in there:
            return None
        return f"the installed onnxruntime has no {self.provider}; it has {', '.join(there)}"


CUDA = Device(
    "cuda",
    "CUDAExecutionProvider",
    # TensorFloat-32 keeps 10 bits of a mantissa. And a search for the fastest convolution would be made anew for every
    # number of images that happen to be encoded together.
    {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """Rows of a tensor in a device's memory, contiguous.

    Args:
        device: whose memory.
        shape: (n, ...).
        dtype: of the elements.
        address: of the first row.
        value: what owns the memory: all rows of it.
    """

    device: Device
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    address: int
    value: onnxruntime.OrtValue

    @classmethod
    def empty(cls, device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """New memory, whatever it holds."""
        kind = np.dtype(dtype)
        return cls.of(device, onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind.type, device.memory), kind)

    @classmethod
    def of(cls, device: Device, value: onnxruntime.OrtValue, dtype: npt.DTypeLike) -> DeviceArray:
        """What onnxruntime has allocated in this device's memory."""
        return cls(device, tuple(value.shape()), np.dtype(dtype), value.data_ptr(), value)

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Some of the rows, where they lie."""
        start, stop, _ = rows.indices(self.shape[0])
        address = self.address + start * self.row_bytes
        return DeviceArray(self.device, (stop - start, *self.shape[1:]), self.dtype, address, self.value)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """A copy on the host, of all that `value` owns before it is cut: not for what is done at every step."""
        first = (self.address - self.value.data_ptr()) // self.row_bytes
        part: Array = self.value.numpy()[first : first + self.shape[0]]
        return part.astype(dtype or part.dtype)

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def fill(self, array: Array) -> None:
        """Copy an array of the host here, of the same shape and type. Only for all that `value` owns."""
        self.value.update_inplace(array)


Tensor = Array | DeviceArray
"""Rows on the host or on a device."""


def address_of(tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    """What onnxruntime's bindings ask for: memory, its number, element type, shape, address. [n, ...], contiguous"""
    if isinstance(tensor, DeviceArray):
        return tensor.device.memory, 0, tensor.dtype.type, tensor.shape, tensor.address
    return "cpu", 0, tensor.dtype.type, tensor.shape, tensor.ctypes.data
