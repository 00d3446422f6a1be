"""How weights and activations are rounded to eight bits, and the nodes that multiply them.

Axes: B batch rows, K inputs, N outputs.

    x ~ scale_x * (q_x - zero),  W[:, n] ~ scale_n * q_n,  x W + b ~ scale_x scale_n ((q_x - zero) q_n) + b

The sum in the middle is over integers, hence exact and the same whatever the batch; one node turns it into float32
(com.microsoft's MatMulIntegerToFloat). `scale_x` is fixed when the graph is made. A *dynamic* scale, of what happens to
be in the batch, would make a row's result depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from carousel.export.passes.graph import MICROSOFT, Array, Graph
from carousel.export.passes.products import Floats, Product

ACTIVATION_LEVELS = 127
"""An activation in [-range, range] becomes an integer in [-127, 127], stored as uint8 around 128."""
ZERO_POINT = 128

WEIGHT_LEVELS = 63
"""A weight becomes an integer in [-63, 63]. Processors without VNNI add neighbouring products in 16 bits that saturate;
2 * 255 * 63 fits, so the sums are exact everywhere. The bit given up did not show in any model measured."""


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


def quantize(graph: Graph, value: str, range_: float) -> tuple[str, str, str]:
    """Round a float32 value to uint8 around 128; what lies outside [-range, range] becomes the nearer end.

    There is no range that fits all: one that is too small cuts off in silence, so it is the caller's to know.

    Returns:
        The rounded value, and its scale and zero point.
    """
    scale = graph.constant(f"scale.{range_!r}", range_ / ACTIVATION_LEVELS, np.float32)
    zero = graph.constant("zero_point", ZERO_POINT, np.uint8)
    made = graph.makers.get(value)
    name = f"{value}.rounded"
    if name in graph.makers:
        return name, scale, zero
    if made is not None and made.op_type == "Gather" and made.input[0] in graph.constants:
        values = np.rint(graph.constants[made.input[0]] * (ACTIVATION_LEVELS / range_)) + ZERO_POINT
        table = graph.constant(f"{made.input[0]}.rounded", values, np.uint8)
        return graph.node("Gather", table, made.input[1], result=name), scale, zero
    return graph.node("QuantizeLinear", value, scale, zero, result=name), scale, zero


def multiply(graph: Graph, product: Product, range_: float) -> None:
    """Write a product in int8 in the place of its nodes; `range_` is that of x."""
    matrix = quantize_columns(graph.constants[product.weight])
    for node in product.nodes:
        graph.nodes.remove(node)
    rounded, scale, zero = quantize(graph, product.x, range_)
    operands = [
        rounded,
        graph.constant(f"{product.weight}.int8", matrix.values, np.int8),
        scale,
        graph.constant(f"{product.weight}.scales", matrix.scales, np.float32),
        zero,
        graph.constant("weight_zero_point", 0, np.int8),
        *([product.bias] if product.bias else []),
    ]
    graph.node("MatMulIntegerToFloat", *operands, result=product.result, domain=MICROSOFT)


def multiply_few(node: onnx.NodeProto, constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """A MatMulIntegerToFloat as nodes that say the same, bit for bit, in less time for one row and more for many.

    The one node multiplies its two scales anew in every call.
    """
    x, weight, x_scale, weight_scales, zero, _, *bias = node.input
    (result,) = node.output
    scales = f"{weight_scales}.of.{x_scale}"
    constants[scales] = constants[x_scale] * constants[weight_scales]
    last = f"{result}.product" if bias else result
    nodes = [
        helper.make_node("MatMulInteger", [x, weight, zero], [f"{result}.sums"]),
        helper.make_node("Cast", [f"{result}.sums"], [f"{result}.floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{result}.floats", scales], [last]),
    ]
    return nodes + [helper.make_node("Add", [last, each], [result]) for each in bias]
