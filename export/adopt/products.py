"""Convolutions over a few frames as products, if asked for: onnxruntime convolves row by row, and multiplies together.

Either the whole convolution is one matrix, from every value of a row to every value of its result, or, where that would
mostly multiply zeros, the frames are gathered and each is multiplied. Sums are then taken in another order, so that a
result is not to the bit the file's; a row is still what it is in company.
"""

from __future__ import annotations

import time
from math import gcd, prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from carousel.export.adopt.graphs import attribute, constant, copy_of, initializers, prune, set_nodes, value_info
from carousel.export.adopt.trial import Array, Trial, made_up, row_ports

MAX_WASTE = 2
"""Times as many multiplications as the convolution's own that one matrix may take: it moves nothing."""
MAX_FRAMES = 16
"""Of which frames are gathered; over more, onnxruntime's own convolution is as fast."""
ROWS, ROUNDS = 64, 25
"""With which the gain is measured."""


def convolutions_as_products(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int, int]:
    """A step graph with its convolutions as products; how many now are, and how many there were."""
    model = copy_of(model)
    graph = model.graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    if not convolutions:
        return model, 0, 0
    shapes = _shapes(model, [name for node in convolutions for name in (node.input[0], node.output[0])])
    held = initializers(graph)
    nodes: list[onnx.NodeProto] = []
    written = 0
    for node in graph.node:
        made = None
        if node.op_type == "Conv" and all(name in held for name in node.input[1:]):
            values = [numpy_helper.to_array(held[name]) for name in node.input[1:]]
            made = _product(model, node, values, shapes[node.input[0]], shapes[node.output[0]])
        nodes += made or [node]
        written += made is not None
    set_nodes(graph, nodes)
    prune(graph)
    return model, written, len(convolutions)


def time_ratio(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """How long the second step graph takes with 64 rows, in times of the first: in turn, medians, one thread."""
    random = np.random.default_rng(14)
    feeds = {port.name: made_up(random, port, ROWS) for port in row_ports(one)}
    trials = Trial(one), Trial(other)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for trial, taken in zip(trials, seconds, strict=True):
            begun = time.thread_time()
            trial(feeds)
            taken.append(time.thread_time() - begun)
    return float(np.median(seconds[1]) / np.median(seconds[0]))


def _shapes(model: onnx.ModelProto, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Of these tensors, for one row."""
    probe = copy_of(model)
    del probe.graph.output[:]
    for name in dict.fromkeys(names):
        probe.graph.output.add().name = name
    prune(probe.graph)
    random = np.random.default_rng(0)
    told = Trial(probe, plain=True)({port.name: made_up(random, port, 1) for port in row_ports(model)})
    return {name: array.shape for name, array in told.items()}


def _product(
    model: onnx.ModelProto, node: onnx.NodeProto, values: list[Array], given: tuple[int, ...], told: tuple[int, ...]
) -> list[onnx.NodeProto] | None:
    """The nodes that are in a convolution's place; None where a product would be slower or cannot be.

    Args:
        model: whose it is.
        node: the convolution.
        values: its weights [channels out, channels in, taps...], and its bias if it has one.
        given: its input's shape for one row, [1, channels, places...].
        told: its output's, [1, channels, frames...].
    """
    weights, frames = values[0], prod(told[2:])
    if given[0] != 1 or told[0] != 1:  # axis 0 is not the row alone
        return None
    if prod(given[1:]) <= MAX_WASTE * prod(weights.shape[1:]):
        return _whole(model, node, values, given[1:], told[1:])
    padded = any(attribute(node, "pads", ()))
    plain = attribute(node, "group", 1) == 1 and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    opset = next(each.version for each in model.opset_import if not each.domain)
    if len(given) != 3 or frames > MAX_FRAMES or not plain or (padded and opset < 11):
        return None
    return _gathered(model.graph, node, values, given[2], frames)


def _whole(
    model: onnx.ModelProto, node: onnx.NodeProto, values: list[Array], given: tuple[int, ...], told: tuple[int, ...]
) -> list[onnx.NodeProto]:
    """One matrix, seen by convolving every unit impulse."""
    count, weights = prod(given), values[0]
    kept = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    alone = helper.make_graph(
        [helper.make_node("Conv", ["impulses", "weights"], ["matrix"], **kept)],
        "impulses",
        [value_info("impulses", weights.dtype, [count, *given])],
        [value_info("matrix", weights.dtype, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    trial = Trial(helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version))
    matrix = trial({"impulses": np.eye(count, dtype=weights.dtype).reshape(count, *given)})["matrix"]
    add = _Nodes(model.graph, node)
    flat = add.node("Reshape", node.input[0], add.ints(-1, count))
    bias = [np.repeat(values[1], prod(told[1:]))] if len(values) > 1 else []
    add.node("Reshape", add.affine(flat, matrix.reshape(count, -1), bias), add.ints(-1, *told), last=True)
    return add.nodes


def _gathered(
    graph: onnx.GraphProto, node: onnx.NodeProto, values: list[Array], places: int, frames: int
) -> list[onnx.NodeProto]:
    """Frames, each times the weights; gathered by blocks of as many places as move together."""
    units, channels, taps = values[0].shape
    stride, dilation = attribute(node, "strides", [1])[0], attribute(node, "dilations", [1])[0]
    left, right = attribute(node, "pads", [0, 0])
    add = _Nodes(graph, node)
    name = add.node("Transpose", node.input[0], perm=[0, 2, 1]) if channels > 1 else node.input[0]
    name = add.node("Reshape", name, add.ints(-1, places, channels))
    if left or right:
        name = add.node("Pad", name, add.ints(0, left, 0, 0, right, 0))
        places += left + right
    block = gcd(stride, taps, places) if dilation == 1 else 1
    name = add.node("Reshape", name, add.ints(-1, places // block, block * channels))
    first = np.arange(frames)[:, None] * (stride // block) + np.arange(taps // block) * dilation
    name = add.node("Gather", name, add.held(first.astype(np.int64)), axis=1)
    name = add.node("Reshape", name, add.ints(-1, taps * channels))
    matrix = values[0].transpose(2, 1, 0).reshape(taps * channels, units)
    name = add.node("Reshape", add.affine(name, matrix, values[1:]), add.ints(-1, frames, units))
    add.node("Transpose", name, perm=[0, 2, 1], last=True)
    return add.nodes


class _Nodes:
    """What goes in a node's place, its names after the node's."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self._graph, self._result = graph, node.output[0]
        self._count = 0
        self.nodes: list[onnx.NodeProto] = []

    def _name(self) -> str:
        self._count += 1
        return f"{self._result}.product{self._count}"

    def held(self, value: Array) -> str:
        return constant(self._graph, self._name(), np.ascontiguousarray(value))

    def ints(self, *values: int) -> str:
        return self.held(np.array(values, np.int64))

    def node(self, operator: str, *inputs: str, last: bool = False, **attributes: object) -> str:
        result = self._result if last else self._name()
        self.nodes.append(helper.make_node(operator, list(inputs), [result], name=self._name(), **attributes))
        return result

    def affine(self, name: str, matrix: Array, bias: list[Array]) -> str:
        name = self.node("MatMul", name, self.held(matrix))
        return self.node("Add", name, self.held(bias[0])) if bias else name
