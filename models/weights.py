"""Weights that graphs of a bundle share: tensors that lie in the one file that the manifest names for it.

A prefill graph has most of the step graph's weights. In ONNX's own terms such a tensor is an initializer with external
data, so that any reader of ONNX finds it beside the graph. The service hands the verified bytes to onnxruntime, which
opens no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from carousel.models.errors import GraphRejected

WEIGHTS = "weights.bin"
"""What export calls the file."""

KEYS = ("location", "offset", "length", "checksum")
"""What ONNX says of external data. A checksum is not looked at: the manifest has the file's."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The file that a manifest names."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A tensor of a graph, and where in the weights file it lies."""

    name: str
    dtype: str
    """As numpy calls it."""
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Its length."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"tensor {self.name!r} {self.dtype}[{', '.join(map(str, self.shape))}]"


def read_weight(tensor: Any, dtype: str, graph: str, file: WeightsFile) -> WeightSpec:
    """Where an initializer with external data lies.

    Args:
        tensor: the TensorProto.
        dtype: its element type.
        graph: the graph's file, for the error's sentence.
        file: where its data may lie.

    Raises:
        GraphRejected: they lie elsewhere, or are not what the tensor says.
    """
    said = f"{graph}: tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) < len(tensor.external_data) or not entries.keys() <= set(KEYS):
        keys = ", ".join(entry.key for entry in tensor.external_data)
        raise GraphRejected(f"{said} says of its data: {keys}; allowed are {', '.join(KEYS)}, each once")
    if entries.get("location") != file.name:
        raise GraphRejected(
            f"{said} keeps its data in {entries.get('location', '')!r}; "
            f"allowed is {file.name}, which the manifest names as weights"
        )
    offset = _number(said, "offset", entries.get("offset", "0"))
    spec = WeightSpec(tensor.name, dtype, tuple(tensor.dims), offset)
    if not all(size > 0 for size in spec.shape):
        raise GraphRejected(f"{graph}: {spec} has no entries; allowed are sizes of 1 or more")
    length = _number(said, "length", entries.get("length", str(spec.bytes)))
    if length != spec.bytes:
        raise GraphRejected(f"{graph}: {spec} takes {spec.bytes:,} bytes; its data are said to be {length:,}")
    if offset + length > file.bytes:
        raise GraphRejected(
            f"{graph}: {spec} lies at bytes {offset:,} to {offset + length:,} of {file.name}, which has {file.bytes:,}"
        )
    if offset % np.dtype(dtype).itemsize:
        raise GraphRejected(
            f"{graph}: {spec} lies at byte {offset:,} of {file.name}; allowed are multiples of an entry's size"
        )
    return spec


def _number(said: str, key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise GraphRejected(f"{said} says of its data: {key} {value[:40]!r}; allowed is a whole number of bytes")
    return int(value)
