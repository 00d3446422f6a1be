"""Products with constant matrices in int8; what they read is rounded on a grid whose ends are known.

Only products are in int8. Their inputs are rounded; what is carried from step to step, and everything between two
products (gates, the cell state), stays float32, so inputs, outputs and states are those of the graph before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import helper

from carousel.export.passes.bounds import Interval, bounds
from carousel.export.passes.graph import Graph, named
from carousel.export.passes.products import Product, products
from carousel.export.passes.rounding import multiply
from carousel.models.errors import CarouselError

LargestMet = Callable[[onnx.ModelProto, Sequence[str]], Mapping[str, float]]
"""Runs a model, which puts out these float32 values too, on data; says the largest absolute entry of each."""


class NoBound(CarouselError):
    """A product reads what may be of any size, and there are no data to see how large it is."""


def round_products(
    model: onnx.ModelProto, known: Mapping[str, Interval] | None = None, measure: LargestMet | None = None
) -> tuple[onnx.ModelProto, list[str]]:
    """Put a model's products in int8; a product with one column stays as it is, since rounding x would take as long.

    The end of a grid is the bound of what is rounded. Where there is none, or only that of a sum, which is far beyond
    what is met, the largest entry met on data takes its place.

    Args:
        model: of one step, in fp32.
        known: where inputs lie (see bounds).
        measure: looks at data; None where there are none.

    Returns:
        The model, and a sentence for each product that is still in fp32.

    Raises:
        NoBound: there is neither a bound nor are there data, or on the data it is no number.
    """
    graph = Graph(model)
    found = bounds(graph, known)
    left, rounded = list[str](), list[Product]()
    for product in products(graph):
        unknown = found[product.x].unknown
        if graph.constants[product.weight].shape[1] < 2:
            continue
        if unknown:
            left.append(f"{named(product.nodes[0])} reads {product.x!r}, which comes of {unknown}, an unknown operator")
        else:
            rounded.append(product)
    ranges = {product.x: found[product.x].largest for product in rounded}
    unsure = [name for name in ranges if found[name].loose or not found[name].bounded]
    if unsure and measure is not None:
        met = measure(_telling(model, unsure), [f"{name}.told" for name in unsure])
        ranges |= {name: min(met[f"{name}.told"], ranges[name]) for name in unsure}  # NaN stays, being first
    for product in rounded:
        if not math.isfinite(ranges[product.x]):
            raise NoBound(
                f"{named(product.nodes[0])} reads {product.x!r}, which may be of any size, and int8 needs its range: "
                + ("on the data it is no number" if measure else "give data to measure it on")
                + ", or leave the model in fp32"
            )
    for product in rounded:
        multiply(graph, product, ranges[product.x] or 1.0)
    return graph.model(), left


def _telling(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    for name in values:
        telling.graph.node.append(helper.make_node("Identity", [name], [f"{name}.told"]))
        telling.graph.output.append(onnx.ValueInfoProto(name=f"{name}.told"))
    return telling
