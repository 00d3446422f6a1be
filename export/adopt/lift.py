"""Recurrent nodes whose state begins inside the graph get it from outside, and give it back.

The state of an LSTM, GRU or RNN node is its initial_h (and initial_c) before, and its Y_h (and Y_c) after. Where the
first is absent, or is worked out from shapes and constants alone, the graph begins anew in each call: such a state is
hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import attribute, copy_of, initializers, producers, prune, reads, value_info
from carousel.export.adopt.trial import Array, Arrays, Trial

PORTS = {"LSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),), "DynamicQuantizeLSTM": ((5, 1), (6, 2))}
"""Of each operator, which input is a state, and which output is that state after it: h, then c."""


LIFTED = "lifted"
"""What the ports of states that a file keeps to itself are called, and a number."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """A state that was hidden.

    Args:
        before: the new input, [directions, batch, units].
        after: the new output.
        node: whose it is.
        initial: one row of what it begins with, where that is not zeros. [directions, 1, units]
    """

    before: str
    after: str
    node: str
    initial: Array | None


def recurrent_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those with states of their own."""
    return [node for node in graph.node if node.op_type in PORTS]


def runs_backwards(graph: onnx.GraphProto) -> str | None:
    """The node that reads its input from the end; None where none does."""
    for node in recurrent_nodes(graph):
        if attribute(node, "direction", b"forward") != b"forward":
            return str(node.name)
    return None


def lift_states(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> tuple[onnx.ModelProto, list[Lifted]]:
    """Give hidden states ports.

    Args:
        model: the network.
        feeds: inputs to see with what a state begins.

    Raises:
        AdoptionRefused: a node's layout is not the usual one.
    """
    original, model = model, copy_of(model)
    graph = model.graph
    values = _value_dependent(graph)
    lifted: list[Lifted] = []
    for number, node in enumerate(recurrent_nodes(graph)):
        if attribute(node, "layout", 0):
            raise AdoptionRefused(
                f"{node.op_type} {node.name!r} has layout 1, which onnxruntime does not run; export it with 0"
            )
        for (source, result), kind in zip(PORTS[node.op_type], "hc", strict=False):
            given = node.input[source] if len(node.input) > source else ""
            if given in values:
                continue
            before, after = f"{LIFTED}{number}.{kind}", f"{LIFTED}{number}.next_{kind}"
            initial = _initial(original, given, feeds) if given else None
            while len(node.input) <= source:
                node.input.append("")
            while len(node.output) <= result:
                node.output.append("")
            if not node.output[result]:
                node.output[result] = after
            else:
                graph.node.append(onnx.helper.make_node("Identity", [node.output[result]], [after]))
            node.input[source] = before
            units = attribute(node, "hidden_size") or _units(graph, node)
            directions = 2 if attribute(node, "direction", b"forward") == b"bidirectional" else 1
            graph.input.append(value_info(before, np.float32, [directions, "batch", units]))
            graph.output.append(value_info(after, np.float32, None))
            lifted.append(Lifted(before, after, node.name, initial))
    prune(graph)
    return model, lifted


def _value_dependent(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on the values of inputs, not on their shapes alone."""
    found = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and any(name in found for name in reads(node)):
            found.update(name for name in node.output if name)
    return found


def _initial(model: onnx.ModelProto, name: str, feeds: Sequence[Arrays]) -> Array | None:
    held = initializers(model.graph).get(name)
    if held is not None:
        value = numpy_helper.to_array(held)
    else:
        probe = copy_of(model)
        del probe.graph.output[:]
        probe.graph.output.append(value_info(name, np.float32, None))
        prune(probe.graph)
        value = Trial(probe)(feeds[0])[name]
    return np.asarray(value)[:, :1] if np.any(value) else None


def _units(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    weights = initializers(graph).get(node.input[2])
    if weights is None:
        raise AdoptionRefused(f"{node.op_type} {node.name!r} says neither hidden_size nor has constant weights")
    return int(weights.dims[-1])


def carried_by(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """Of each tensor, what nodes that only move values make of it: `b` is `a` in another place or shape."""
    moving = {
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Reshape",
        "Concat",
        "Slice",
        "Gather",
        "Split",
        "Identity",
        "Cast",
        "Flatten",
    }
    reach: dict[str, set[str]] = {}
    made = producers(graph)

    def sources(name: str) -> set[str]:
        if name not in reach:
            reach[name] = {name}
            node = made.get(name)
            if node is not None and node.op_type in moving:
                data = node.input if node.op_type == "Concat" else node.input[:1]
                for each in data:
                    reach[name] |= sources(each)
        return reach[name]

    for name in list(made):
        sources(name)
    return reach
