"""Matrix products in int8: how weights and activations are rounded, and the node that multiplies them.

Axes: B batch rows, K inputs, N outputs.

    x ~ scale_x * (q_x - 128),  W[:, n] ~ scale_n * q_n,  x W + b ~ scale_x scale_n ((q_x - 128) q_n) + b

The sum in the middle is over integers, hence exact and the same whatever the batch; one node turns it into float32
(com.microsoft's MatMulIntegerToFloat). `scale_x` is fixed when the graph is made. A *dynamic* scale, of what happens to
be in the batch, would make a row's result depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from carousel.export.graph_builder import GraphBuilder

Floats = npt.NDArray[np.float32]

ACTIVATION_LEVELS = 127
"""An activation in [-range, range] becomes an integer in [-127, 127], stored as uint8 around 128."""
ZERO_POINT = 128

WEIGHT_LEVELS = 63
"""A weight becomes an integer in [-63, 63]. Processors without VNNI add neighbouring products in 16 bits that saturate;
2 * 255 * 63 fits, so the sums are exact everywhere. The bit given up did not show in any model measured."""

TABLE_BLOCK = 256
"""Entries of a table's row that share a scale. A row's parts differ in size (the gates of a cell; with attention, what
is asked, too), so one scale for all of it would round some of them coarsely. Smaller blocks take longer to look up."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A uint8 value of the graph that stands for float values in [-range, range]."""

    name: str
    range: float


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix as integers and a scale for each column."""

    values: npt.NDArray[np.int8]
    """<int8>[K, N], in [-63, 63]"""
    scales: Floats
    """<float32>[N]"""


def quantize_columns(weight: Floats) -> QuantizedMatrix:
    """Round each column to its own symmetric grid, whose end is the column's largest entry. <float32>[K, N]"""
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(WEIGHT_LEVELS)
    return QuantizedMatrix(np.rint(weight / scales).astype(np.int8), scales)


def quantize(graph: GraphBuilder, value: str, range_: float = 1.0) -> Activation:
    """Round a float32 value to uint8 around 128; what lies outside [-range, range] becomes the nearer end.

    The range is 1 for a recurrent h, without calibration: o * tanh(c), and a mean of tanh and the h before it, lie in
    (-1, 1). Whatever has no such bound needs its range measured on validation data.
    """
    scale, zero = _grid(graph, range_)
    return Activation(graph.node("QuantizeLinear", value, scale, zero), range_)


def quantized_rows(graph: GraphBuilder, name: str, table: Floats, ids: str) -> Activation:
    """The rows `ids` <int64>[B] of a table <float32>[V, K] that is kept rounded."""
    range_ = float(np.abs(table).max()) or 1.0
    values = np.rint(table * (ACTIVATION_LEVELS / range_)) + ZERO_POINT
    return Activation(graph.node("Gather", graph.constant(name, values, np.uint8), ids), range_)


def quantize_blocks(table: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Round each TABLE_BLOCK of a row to its own symmetric grid, whose end is its largest entry. <float32>[V, N]

    Returns:
        Integers around 128 <uint8>[V, N], in [1, 255], and the scales <float32>[V, ceil(N / TABLE_BLOCK)].
    """
    starts = range(0, table.shape[1], TABLE_BLOCK)
    largest = np.maximum.reduceat(np.abs(table), list(starts), axis=1)
    scales = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(ACTIVATION_LEVELS)
    whole = np.empty(table.shape, np.uint8)
    for place, start in enumerate(starts):  # not all at once: a table is large, and float32 is four times as much
        part = table[:, start : start + TABLE_BLOCK] / scales[:, place, np.newaxis]
        whole[:, start : start + TABLE_BLOCK] = np.rint(part) + ZERO_POINT
    return whole, scales


def looked_up(graph: GraphBuilder, name: str, table: Floats, ids: str, result: str | None = None) -> str:
    """The rows `ids` <int64>[...] of a table <float32>[V, N] that is kept rounded: a float32 value [..., N].

    One node takes the rows and multiplies them out: as fast as rows of float16 that are cast, at half the size.
    """
    whole, scales = quantize_blocks(table)
    return graph.node(
        "GatherBlockQuantized",
        graph.constant(f"{name}.table", whole, np.uint8),
        ids,
        graph.constant(f"{name}.table_scales", scales, np.float32),
        result=result,
        domain="com.microsoft",
        bits=8,  # around 128, where no zero point is given
        block_size=TABLE_BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


def product(
    graph: GraphBuilder, name: str, x: Activation, weight: Floats, bias: Floats | None = None, result: str | None = None
) -> str:
    """The float32 value x W + b.

    Args:
        name: what the constants are called after.
        x: <uint8>[B, K]
        weight: <float32>[K, N]
        bias: <float32>[N]
        result: what the value is called.
    """
    quantized = quantize_columns(weight)
    scale, zero = _grid(graph, x.range)
    operands = [
        x.name,
        graph.constant(f"{name}.weight", quantized.values, np.int8),
        scale,
        graph.constant(f"{name}.scales", quantized.scales, np.float32),
        zero,
        graph.constant("weight_zero_point", 0, np.int8),
    ]
    if bias is not None:
        operands.append(graph.constant(f"{name}.bias", bias, np.float32))
    return graph.node("MatMulIntegerToFloat", *operands, result=result, domain="com.microsoft")


def product_of_few(graph: GraphBuilder, name: str, x: Activation, weight: Floats, bias: Floats | None = None) -> str:
    """The same value as `product`, bit for bit, in operators that are faster for one row and slower for many.

    MatMulIntegerToFloat multiplies its two scales anew in every call. Arguments are those of `product`.
    """
    quantized = quantize_columns(weight)
    _, zero = _grid(graph, x.range)
    whole = graph.node("MatMulInteger", x.name, graph.constant(f"{name}.weight", quantized.values, np.int8), zero)
    scales = np.float32(x.range / ACTIVATION_LEVELS) * quantized.scales
    value = graph.node(
        "Mul",
        graph.node("Cast", whole, to=onnx.TensorProto.FLOAT),
        graph.constant(f"{name}.scales", scales, np.float32),
    )
    return value if bias is None else graph.node("Add", value, graph.constant(f"{name}.bias", bias, np.float32))


Product = Callable[[GraphBuilder, str, Activation, Floats, Floats | None], str]
"""`product` or `product_of_few`."""


def _grid(graph: GraphBuilder, range_: float) -> tuple[str, str]:
    """Scale and zero point of an activation."""
    scale = graph.constant(f"scale.{range_:g}", range_ / ACTIVATION_LEVELS, np.float32)
    return scale, graph.constant("zero_point", ZERO_POINT, np.uint8)
