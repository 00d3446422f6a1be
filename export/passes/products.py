"""Products with constant weights, all written alike: what the other passes look for.

Axes: B batch rows, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from carousel.export.passes.graph import Array, Graph, attribute

Floats = npt.NDArray[np.float32]

DRAWN = ("Random", "Bernoulli", "Multinomial", "Dropout")
"""What operators begin with that are no function of what they read."""


@dataclass(frozen=True, slots=True)
class Product:
    """x W + b."""

    x: str
    """<float32>[..., K]"""
    weight: str
    """<float32>[K, N]"""
    bias: str | None
    """<float32>[N]"""
    result: str
    nodes: list[onnx.NodeProto] = field(compare=False)
    """MatMul, and Add where there is a bias."""


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded, and Gemm with constant weights written as MatMul and Add."""
    graph = Graph(model)
    for node in list(graph.ordered(graph.outputs)):
        if all(name in graph.constants for name in node.input if name) and _can_fold(graph, node):
            graph.constants |= dict(zip(node.output, evaluated(graph, [node], {}, list(node.output)), strict=True))
            graph.nodes.remove(node)
        elif node.op_type == "Gemm" and node.input[1] in graph.constants and not attribute(node, "transA", 0):
            _spell_out(graph, node)
    return graph.model()


def products(graph: Graph) -> list[Product]:
    """The products with a constant matrix, in the order in which they run."""
    found, readers = [], graph.readers
    for node in graph.ordered(graph.outputs):
        weight = graph.constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or node.input[0] in graph.constants:
            continue
        x, result, bias, nodes = node.input[0], node.output[0], None, [node]
        after = readers.get(result, [])
        if len(after) == 1 and after[0].op_type == "Add" and result not in graph.outputs:
            bias = next((name for name in after[0].input if name in graph.constants), None)
            if bias is not None and graph.constants[bias].shape == weight.shape[1:]:
                result, nodes = after[0].output[0], [node, after[0]]
            else:
                bias = None
        found.append(Product(x, node.input[1], bias, result, nodes))
    return found


def evaluated(graph: Graph, nodes: list[onnx.NodeProto], fed: dict[str, Array], results: list[str]) -> list[Array]:
    """What nodes make of `fed`, the graph's constants at hand."""
    fed = fed | {name: graph.constants[name] for node in nodes for name in node.input if name in graph.constants}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), None)
        for name, each in fed.items()
    ]
    part = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in results])
    return [np.asarray(each) for each in ReferenceEvaluator(graph.wrapped(part)).run(results, fed)]


def _can_fold(graph: Graph, node: onnx.NodeProto) -> bool:
    nested = any(each.HasField("g") or each.graphs for each in node.attribute)
    return not (nested or node.domain or node.op_type.startswith(DRAWN) or set(node.output) & set(graph.outputs))


def _spell_out(graph: Graph, node: onnx.NodeProto) -> None:
    x, name, *bias = node.input
    transposed, alpha, beta = (attribute(node, each, like) for each, like in (("transB", 0), ("alpha", 1), ("beta", 1)))
    weight = graph.constants[name].T if transposed else graph.constants[name]
    matrix = graph.constant(f"{name}.columns" if transposed else name, weight, np.float32)
    if alpha != 1:
        matrix = graph.constant(f"{matrix}.{alpha}", alpha * weight, np.float32)
    graph.nodes.remove(node)
    if not bias or not bias[0]:
        graph.node("MatMul", x, matrix, result=node.output[0])
        return
    product, added = graph.node("MatMul", x, matrix), bias[0]
    if beta != 1:
        scaled = graph.constant(f"{added}.beta", beta, np.float32)
        added = graph.node("Mul", added, scaled)
    graph.node("Add", product, added, result=node.output[0])
