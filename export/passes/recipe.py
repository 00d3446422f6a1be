"""The passes in their order."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from carousel.export.passes.bounds import Interval
from carousel.export.passes.int8 import LargestMet, round_products
from carousel.export.passes.merge import merge
from carousel.export.passes.prefill import prefill
from carousel.export.passes.products import plain
from carousel.export.passes.split import split
from carousel.export.passes.sums import order_sums
from carousel.export.passes.tables import tables


def int8_step(
    step: bytes, known: Mapping[str, Interval] | None = None, measure: LargestMet | None = None
) -> tuple[bytes, list[str]]:
    """An exported fp32 step graph in int8; inputs and outputs are the same.

    Args:
        step: the ONNX model.
        known: where its inputs lie (passes/bounds.py).
        measure: the largest entries of values, on data (passes/int8.py).

    Returns:
        The ONNX model, and a sentence for each product that is still in fp32.

    Raises:
        NoBound: a product's input may be of any size, and there are no data.
    """
    model = onnx.load_from_string(step)
    for each in (plain, split, order_sums, tables, merge):
        model = each(model)
    rounded, left = round_products(model, known, measure)
    return written(rounded), left


def prefill_graphs(step: bytes) -> list[bytes]:
    """The prefill graphs of a step graph, the lowest first.

    Raises:
        NoPrefill: none can be made of it.
    """
    return [written(model) for model in prefill(onnx.load_from_string(step))]


def written(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same model."""
    return bytes(model.SerializeToString(deterministic=True))
