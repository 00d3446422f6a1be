"""What depends on an id alone is looked up by the id, in a table of eight bits: no product, and one rounding.

Axes: B batch rows, V ids, N entries of a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from carousel.export.passes.graph import MICROSOFT, Graph
from carousel.export.passes.lift import lifted
from carousel.export.passes.products import Floats, evaluated
from carousel.export.passes.rounding import ACTIVATION_LEVELS, ZERO_POINT

MAX_TABLE_BYTES = 32 << 20
"""Up to here a product is replaced. A larger vocabulary keeps its embedding, which is smaller: [V, E] for [V, 4H]."""

TABLE_BLOCK = 256
"""Entries of a table's row that share a scale. A row's parts differ in size (the gates of a cell; with attention, what
is asked, too), so one scale for all of it would round some of them coarsely. Smaller blocks take longer to look up."""


def tables(model: onnx.ModelProto) -> onnx.ModelProto:
    """Look up what is made, row by row, of an embedding's rows; where it holds a product, or it would gain nothing."""
    graph = Graph(model)
    ids: dict[str, str] = {}
    """By value that is made of ids alone: which."""
    counts: dict[str, int] = {}
    """Of ids: how many there are."""
    multiplied: set[str] = set()
    """Of those values: those with a product."""
    for node in graph.ordered(graph.outputs):
        read, source = {name for name in node.input if name and name not in graph.constants}, ""
        results = [graph.example[name] for name in node.output]
        if lifted(graph, node) is None or any(each.ndim != 2 or each.dtype != np.float32 for each in results):
            continue
        if node.op_type == "Gather":
            source, embedding = node.input[1], graph.constants[node.input[0]]
            counts[source] = min(len(embedding), counts.get(source, len(embedding)))
        elif len({ids.get(name) for name in read}) == 1:
            source = ids.get(read.pop(), "")
        if source:
            ids |= dict.fromkeys(node.output, source)
            if node.op_type == "MatMul" or multiplied.intersection(node.input):
                multiplied.update(node.output)
    readers = graph.readers
    for source, count in counts.items():
        members = {name for name, of in ids.items() if of == source}
        ends = [
            name
            for name in members
            if name in graph.outputs or any(node.output[0] not in members for node in readers.get(name, []))
        ]
        chosen, width = list[str](), 0
        for name in sorted(ends, key=lambda name: (graph.example[name].shape[1], name)):
            width += graph.example[name].shape[1]
            if count * width <= MAX_TABLE_BYTES:
                chosen.append(name)
        if multiplied.intersection(chosen):
            nodes = [node for node in graph.ordered(chosen) if node.output[0] in members]
            _look_up(graph, source, np.hstack(evaluated(graph, nodes, {source: np.arange(count)}, chosen)), chosen)
    return graph.model()


def _look_up(graph: Graph, ids: str, table: Floats, values: list[str]) -> None:
    """Let the values, which stand side by side in the table, be made by it."""
    makers = graph.makers
    for name in values:
        _rename(makers[name], name)
    result = looked_up(graph, f"{ids}.table", table, ids, values[0] if len(values) == 1 else "")
    if len(values) > 1:
        graph.split(result, values, [graph.example[name].shape[1] for name in values])


def _rename(node: onnx.NodeProto, name: str) -> None:
    """Leave the name to the table."""
    outputs = [f"{each}.computed" if each == name else each for each in node.output]
    del node.output[:]
    node.output.extend(outputs)


def looked_up(graph: Graph, name: str, table: Floats, ids: str, result: str = "") -> str:
    """The rows `ids` <int64>[...] of a table <float32>[V, N] that is kept rounded: a float32 value [..., N].

    One node takes the rows and multiplies them out: as fast as rows of float16 that are cast, at half the size.
    """
    whole, scales = quantize_blocks(table)
    return graph.node(
        "GatherBlockQuantized",
        graph.constant(name, whole, np.uint8),
        ids,
        graph.constant(f"{name}.scales", scales, np.float32),
        result=result,
        domain=MICROSOFT,
        bits=8,  # around 128, where no zero point is given
        block_size=TABLE_BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


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
