"""Small networks as others would have exported them, each with a habit of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, UNITS, CLASSES = 5, 7, 3


class Stranger:
    """Collects a graph; weights are drawn once, so that equal calls give equal networks."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def weight(self, name: str, *shape: int) -> str:
        self.held.append(numpy_helper.from_array((0.4 * self._random.standard_normal(shape)).astype(np.float32), name))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(operator, inputs, outputs, name=f"{operator.lower()}{len(self.nodes)}", **attributes)
        )

    def takes(self, name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def gives(self, name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def recurrent(self, operator: str, x: str, h: str = "", c: str = "", lengths: str = "", **attributes: Any) -> None:
        """A node over [time, batch, features]: y [time, 1, batch, units], h_after (and c_after)."""
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        w = self.weight("W", directions, gates * UNITS, FEATURES)
        r = self.weight("R", directions, gates * UNITS, UNITS)
        b = self.weight("B", directions, 2 * gates * UNITS)
        outputs = ["y", "h_after", *(["c_after"] if operator == "LSTM" else [])]
        inputs = [x, w, r, b, lengths, h, *([c] if operator == "LSTM" else [])]
        while not inputs[-1]:
            inputs.pop()
        self.node(operator, inputs, outputs, hidden_size=UNITS, **attributes)

    def content(self, opset: int = 17, **fields: Any) -> bytes:
        graph = helper.make_graph(self.nodes, "stranger", self.inputs, self.outputs, self.held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **fields)
        return bytes(model.SerializeToString())


def sequence_network(
    operator: str, *, states: bool, batch: Any = "batch", names: tuple[str, str] = ("h0", "hn")
) -> bytes:
    """[batch, time, features] -> [batch, time, classes], by one layer; its states from outside, or hidden."""
    net = Stranger()
    x = net.takes("x", [batch, "time", FEATURES])
    net.node("Transpose", [x], ["x_t"], perm=[1, 0, 2])
    h = net.takes(names[0], [1, batch, UNITS]) if states else ""
    c = net.takes("c0", [1, batch, UNITS]) if states and operator == "LSTM" else ""
    net.recurrent(operator, "x_t", h, c)
    net.node("Squeeze", ["y", net.constant("axis", np.array([1]))], ["y_t"])
    net.node("Transpose", ["y_t"], ["y_b"], perm=[1, 0, 2])
    net.node("MatMul", ["y_b", net.weight("V", UNITS, CLASSES)], ["scores"])
    net.gives("scores", [batch, "time", CLASSES])
    if states:
        net.node("Identity", ["h_after"], [names[1]])
        net.gives(names[1], [1, batch, UNITS])
        if operator == "LSTM":
            net.node("Identity", ["c_after"], ["cn"])
            net.gives("cn", [1, batch, UNITS])
    return net.content()


def step_network(*, states: tuple[tuple[str, str], ...] = (("state_in", "state_out"),), batch: Any = "batch") -> bytes:
    """[batch, features] and states [batch, units] -> [batch, classes] and states: cells of products and Tanh."""
    net = Stranger()
    below = net.takes("frame", [batch, FEATURES])
    width = FEATURES
    for number, (before, after) in enumerate(states):
        h = net.takes(before, [batch, UNITS])
        net.node("MatMul", [below, net.weight(f"W{number}", width, UNITS)], [f"wx{number}"])
        net.node("MatMul", [h, net.weight(f"R{number}", UNITS, UNITS)], [f"rh{number}"])
        net.node("Add", [f"wx{number}", f"rh{number}"], [f"sum{number}"])
        net.node("Tanh", [f"sum{number}"], [after])
        net.gives(after, [batch, UNITS])
        below, width = after, UNITS
    net.node("MatMul", [below, net.weight("V", UNITS, CLASSES)], ["scores"])
    net.gives("scores", [batch, CLASSES])
    return net.content()
