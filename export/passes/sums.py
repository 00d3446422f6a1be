"""The terms of a sum in the order in which they are known: of ids alone, of no state, of states."""

from __future__ import annotations

import numpy as np
import onnx

from carousel.export.passes.graph import Graph, reads


def order_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add up first what waits for nobody, and a constant with the first term, whose product it can be the bias of."""
    graph = Graph(model)
    sources = sources_of(graph)
    readers = graph.readers
    floats = {name for name, value in graph.example.items() if value.dtype.kind == "f"}

    def is_sum(node: onnx.NodeProto | None) -> bool:
        return node is not None and node.op_type == "Add" and node.output[0] in floats

    def is_term(name: str) -> bool:
        """Of the sum that reads it, and no sum that it alone makes."""
        inner = makers.get(name)
        return not is_sum(inner) or len(readers[name]) > 1 or name in graph.outputs

    def terms(node: onnx.NodeProto) -> list[str]:
        return [each for name in node.input for each in ([name] if is_term(name) else terms(makers[name]))]

    def order(name: str) -> int:
        if any(source in graph.states for source in sources[name]):
            return 2
        return 0 if all(graph.example[source].dtype.kind == "i" for source in sources[name]) else 1

    makers = graph.makers
    for node in list(graph.nodes):
        above = readers.get(node.output[0], [])
        if not is_sum(node) or (len(above) == 1 and is_sum(above[0]) and not is_term(node.output[0])):
            continue
        found = terms(node)
        values = sorted((name for name in found if name not in graph.constants), key=order)
        biases = [name for name in found if name in graph.constants]
        if len(found) < 3:
            continue
        graph.nodes.remove(node)
        if len({graph.constants[name].shape for name in biases}) == 1:
            total_bias = np.sum([graph.constants[name] for name in biases], axis=0, dtype=np.float32)
            biases = [graph.constant("+".join(biases), total_bias, np.float32)]
        total, *rest = [*values[:1], *biases, *values[1:]]
        for place, name in enumerate(rest):
            total = graph.node("Add", total, name, result=node.output[0] if place + 1 == len(rest) else "")
    return graph.model()


def sources_of(graph: Graph) -> dict[str, frozenset[str]]:
    """By value, the graph's inputs that it depends on."""
    found = {name: frozenset([name]) for name in graph.inputs} | dict.fromkeys(graph.constants, frozenset[str]())
    for node in graph.ordered(graph.outputs):
        read = frozenset[str]().union(*(found.get(name, frozenset()) for name in reads(node)))
        found |= dict.fromkeys(filter(None, node.output), read)
    return found
