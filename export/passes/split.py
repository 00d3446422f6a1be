"""The product of a concatenation becomes a sum of products: [x; h] W = x Wx + h Wh.

So that what does not wait for the step before stands by itself, and each part is rounded on a grid of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from carousel.export.passes.graph import Array, Graph, attribute


def split(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take apart each product, with a constant matrix, of values side by side along their last axis."""
    graph = Graph(model)
    makers = graph.makers
    for node in list(graph.nodes):
        weight = graph.constants.get(node.input[1]) if node.op_type == "MatMul" else None
        parts = list(_parts(makers, graph.example, node.input[0])) if weight is not None and weight.ndim == 2 else []
        if weight is None or len(parts) < 2:
            continue
        graph.nodes.remove(node)
        start, total = 0, ""
        for place, part in enumerate(parts):
            width = (graph.constants[part] if part in graph.constants else graph.example[part]).shape[-1]
            rows = graph.constant(f"{node.input[1]}.{place}", weight[start : start + width], np.float32)
            product = graph.node("MatMul", part, rows)
            start += width
            last = node.output[0] if place + 1 == len(parts) else ""
            total = graph.node("Add", total, product, result=last) if total else product
    return graph.model()


def _parts(makers: Mapping[str, onnx.NodeProto], example: Mapping[str, Array], value: str) -> Iterator[str]:
    """What stands side by side in a value; itself alone where nothing does."""
    node = makers.get(value)
    if node is not None and node.op_type == "Concat" and attribute(node, "axis", 0) in (-1, example[value].ndim - 1):
        for part in node.input:
            yield from _parts(makers, example, part)
    else:
        yield value
