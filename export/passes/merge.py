"""Products of one value are one: [x V, x W] = x [V W]."""

from __future__ import annotations

import numpy as np
import onnx

from carousel.export.passes.graph import Graph
from carousel.export.passes.products import Product, products


def merge(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put side by side the constant matrices that one value is multiplied with, and their biases."""
    graph = Graph(model)
    by_input: dict[str, list[Product]] = {}
    for product in products(graph):
        if graph.example[product.x].ndim == 2:
            by_input.setdefault(product.x, []).append(product)
    for x, several in by_input.items():
        if len(several) < 2:
            continue
        weights = [graph.constants[product.weight] for product in several]
        widths = [weight.shape[1] for weight in weights]
        name = f"{several[0].weight}.all"
        both = graph.node("MatMul", x, graph.constant(name, np.hstack(weights), np.float32))
        if any(product.bias for product in several):
            zeros = (np.zeros(width, np.float32) for width in widths)
            biases = [graph.constants[each.bias] if each.bias else zero
                      for each, zero in zip(several, zeros, strict=True)]  # fmt: skip
            both = graph.node("Add", both, graph.constant(f"{name}.bias", np.concatenate(biases), np.float32))
        for product in several:
            for node in product.nodes:
                graph.nodes.remove(node)
        graph.split(both, [product.result for product in several], widths)
    return graph.model()
