"""Nodes that work on rows, run over an axis of steps in front of the rows.

Axes: T steps, B batch rows.

Also says of a node that its result's row comes from its inputs' same row and nothing else: what holds of an axis more
holds of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from carousel.export.passes.graph import Array, Graph, attribute

# fmt: off
ELEMENTWISE = frozenset((
    "Abs", "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "QuantizeLinear", "Reciprocal",
    "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "Where",
))
# fmt: on
WITH_CONSTANT = frozenset(("MatMul", "MatMulInteger", "MatMulIntegerToFloat"))
"""Of which the second operand must be a constant matrix, of whose products with each row there are as many more."""
LOOKED_UP = frozenset(("Gather", "GatherBlockQuantized"))
ALONG = {"Split": 0, "Concat": 0, "Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1}
"""Operators along an axis, and which one where a node names none."""


def lifted(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The node for values <...>[T, B, ...] where it read and made <...>[B, ...]; None where that is not known of it."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    values = [name for name in node.input if name and name not in graph.constants]
    constants = [graph.constants[name] for name in node.input if name in graph.constants]
    if node.op_type in ELEMENTWISE:
        return copy if _alike(graph.example, values) and _broadcast(graph.example, values, constants) else None
    if node.op_type in WITH_CONSTANT:
        return copy if node.input[1] in graph.constants and len(values) == 1 and constants[0].ndim == 2 else None
    if node.op_type in LOOKED_UP:
        axis = attribute(node, "gather_axis" if node.domain else "axis", 0)
        return copy if axis == 0 and values == [node.input[1]] else None
    if node.op_type in ALONG:
        axis = attribute(node, "axis", ALONG[node.op_type])
        if axis == 0 or not _alike(graph.example, values) or (node.op_type == "Concat" and constants):
            return None
        kept = [each for each in node.attribute if each.name != "axis"]
        del copy.attribute[:]
        copy.attribute.extend([*kept, helper.make_attribute("axis", axis + 1 if axis > 0 else axis)])
        return copy
    return None


def _alike(example: Mapping[str, Array], values: list[str]) -> bool:
    """One rank, which an axis in front leaves one rank."""
    return len({example[name].ndim for name in values}) == 1


def _broadcast(example: Mapping[str, Array], values: list[str], constants: list[Array]) -> bool:
    """No constant reaches up to the rows."""
    rank = example[values[0]].ndim
    return all(each.ndim < rank or (each.ndim == rank and each.shape[0] == 1) for each in constants)
