"""Lengths of rows, written into a network that reads them whole: into recurrent nodes, and into what masks rows."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import constant, copy_of, prune, set_nodes, sort_nodes, value_info
from carousel.export.adopt.lift import recurrent_nodes

SEQUENCE_LENGTHS = 4
"""Which input of a recurrent node says how long each row is."""


def with_lengths(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The network, each of whose recurrent nodes is told how long rows are, by an input of this name.

    Raises:
        AdoptionRefused: it has no such node.
    """
    model = copy_of(model)
    nodes = recurrent_nodes(model.graph)
    if not nodes:
        raise AdoptionRefused("--lengths: the network has no LSTM, GRU or RNN node to tell how long a row is")
    for node in nodes:
        while len(node.input) <= SEQUENCE_LENGTHS:
            node.input.append("")
        if not node.input[SEQUENCE_LENGTHS]:
            node.input[SEQUENCE_LENGTHS] = name
    model.graph.input.append(value_info(name, np.int32, ["batch"]))
    prune(model.graph)
    return model


def fill_mask(graph: onnx.GraphProto, mask: str, source: str, lengths: str, time: int, *, valid: bool) -> None:
    """In place of an input: whether each place is one of its row. bool[batch, time]"""
    kept = [value for value in graph.input if value.name != mask]
    del graph.input[:]
    graph.input.extend(kept)

    def held(name: str, value: object) -> str:
        return constant(graph, f"{mask}.{name}", value)

    def name(of: str) -> str:
        return f"{mask}.{of}"

    zero, one, axis = held("zero", np.int64(0)), held("one", np.int64(1)), held("axis", np.int64(time))
    rows = helper.make_node("Reshape", [name("counts"), held("column", np.array([-1, 1]))], [name("rows")])
    graph.node.extend(
        [
            helper.make_node("Shape", [source], [name("shape")]),
            helper.make_node("Gather", [name("shape"), axis], [name("longest")]),
            helper.make_node("Range", [zero, name("longest"), one], [name("places")]),
            helper.make_node("Cast", [lengths], [name("counts")], to=onnx.TensorProto.INT64),
            rows,
            helper.make_node("Less", [name("places"), name("rows")], [mask if valid else name("real")]),
            *([] if valid else [helper.make_node("Not", [name("real")], [mask])]),
        ]
    )
    set_nodes(graph, sort_nodes(graph))
