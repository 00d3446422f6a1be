"""The step graph in int8, built from a step module's weights.

Axes: B batch rows, V vocabulary (tracing: 2 S attempts), E embedding, H hidden units.

Only products are in int8. Their inputs are rounded; what is carried from step to step, and everything between two
products (gates, the cell state), stays float32, so inputs, outputs and states are those of the fp32 graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from carousel.export.graph_builder import GraphBuilder
from carousel.export.int8_product import Activation, Floats, Product, looked_up, product, quantize, quantized_rows
from carousel.models.errors import CarouselError
from carousel.models.graph import NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.models.nn.cells.gru import StepGRU
from carousel.models.nn.cells.lstm import StepLSTM
from carousel.models.nn.network import StepModule

MAX_TABLE_BYTES = 32 << 20
"""Up to here what layer 0 makes of its input is a table, looked up by id: no product, and one rounding instead of two.
A larger vocabulary keeps its embedding, which is smaller: [V, E] for [V, 4H]."""


def build_int8_step(step: StepModule) -> bytes:
    """The int8 ONNX model of one step; inputs and outputs are those of the fp32 graph.

    Args:
        step: the step module, whose weights are rounded.
    """
    graph = GraphBuilder()
    ids = [graph.input(name, np.int64) for name in step.input_bounds]
    states = {name: graph.input(STATE_PREFIX + name, np.float32, *shape) for name, shape in step.state_shapes.items()}
    output, size = step.output, step.projection.out_features
    graph.output(output, np.float32, size)

    below: LayerInput = EmbeddedIds(attempt(graph, *ids) if len(ids) > 1 else ids[0], step.embedding.weight)
    for depth, (layer, kinds) in enumerate(zip(step.stack.layers, step.stack.state_kinds, strict=True)):
        before = [states[f"{kind}{depth}"] for kind in kinds]
        after = [NEXT_STATE_PREFIX + f"{kind}{depth}" for kind in kinds]
        layer = known_layer(layer)
        from_input = input_product(graph, f"layer{depth}", layer, below)
        next_states(graph, f"layer{depth}", layer, from_input, before, after, product)
        for name, kind in zip(after, kinds, strict=True):
            graph.output(name, np.float32, *step.state_shapes[f"{kind}{depth}"])
        below = HiddenUnits(quantize(graph, after[0]))

    weight, bias = array(step.projection.weight).T, array(step.projection.bias)
    if output == "probability":
        graph.node("Sigmoid", below.product(graph, "projection", weight, bias), result=output)
    else:
        below.product(graph, "projection", weight, bias, result=output)
    return graph.model("step")


class NoInt8(CarouselError):
    """The model has a layer that there is no int8 form of."""


def known_layer(layer: nn.Module) -> StepLSTM | StepGRU:
    """The layer itself.

    Raises:
        NoInt8: its cell is another.
    """
    if not isinstance(layer, StepLSTM | StepGRU):
        raise NoInt8(f"int8 is for layers of LSTM and GRU cells, and one is {type(layer).__name__}; export it in fp32")
    return layer


class HiddenUnits:
    """What a layer above the first reads: the h of the layer below, rounded. <uint8>[B, H]"""

    def __init__(self, h: Activation) -> None:
        self._h = h

    def product(self, graph: GraphBuilder, name: str, weight: Floats, bias: Floats, result: str | None = None) -> str:
        """The float32 value h W + b. weight <float32>[H, N], bias <float32>[N]"""
        return product(graph, name, self._h, weight, bias, result)


class EmbeddedIds:
    """What the first layer reads: an id's row of the embedding.

    Args:
        ids: the value <int64>[B].
        embedding: <float32>[V, E]
    """

    def __init__(self, ids: str, embedding: Tensor) -> None:
        self._ids = ids
        self._embedding = array(embedding)

    def product(self, graph: GraphBuilder, name: str, weight: Floats, bias: Floats, result: str | None = None) -> str:
        """The float32 value x W + b. weight <float32>[E, N], bias <float32>[N]"""
        if self._embedding.shape[0] * weight.shape[1] <= MAX_TABLE_BYTES:
            return looked_up(graph, name, self._embedding @ weight + bias, self._ids, result)
        x = quantized_rows(graph, "embedding", self._embedding, self._ids)
        return product(graph, name, x, weight, bias, result)


LayerInput = EmbeddedIds | HiddenUnits


def input_product(graph: GraphBuilder, name: str, layer: StepLSTM | StepGRU, below: LayerInput) -> str:
    """What a layer makes of its input alone: the float32 value <...>[..., 4H] of an LSTM's, [..., 3H] of a GRU's."""
    if isinstance(layer, StepLSTM):
        weight, bias = array(layer.weight).T, array(layer.bias)  # [E + H, 4H], [4H]
        weight = weight[: -(weight.shape[1] // 4)]
    else:
        weight, bias = array(layer.input_weight).T, array(layer.input_bias)  # [E, 3H], [3H]
    return below.product(graph, f"{name}.input", weight, bias)


def next_states(
    graph: GraphBuilder,
    name: str,
    layer: StepLSTM | StepGRU,
    from_input: str,
    before: list[str],
    after: list[str],
    multiply: Product,
) -> None:
    """One step of a layer: the states by the names `before` become those by the names `after`. [B, H] each

    Args:
        graph: to be added to.
        name: what the constants are called after.
        layer: see StepLSTM, StepGRU.
        from_input: the input_product of this step.
        before: h and c, or h.
        after: likewise.
        multiply: how h is multiplied.
    """
    if isinstance(layer, StepLSTM):
        _lstm(graph, name, layer, from_input, before, after, multiply)
    else:
        _gru(graph, name, layer, from_input, before, after, multiply)


def _lstm(
    graph: GraphBuilder,
    name: str,
    layer: StepLSTM,
    from_input: str,
    before: list[str],
    after: list[str],
    multiply: Product,
) -> None:
    h, c = before
    weight = array(layer.weight).T  # [E + H, 4H]
    hidden = weight.shape[1] // 4
    from_hidden = multiply(graph, f"{name}.hidden", quantize(graph, h), weight[-hidden:], None)  # [B, 4H]
    open_lstm_gates(graph, graph.node("Add", from_input, from_hidden), c, after)


def open_lstm_gates(graph: GraphBuilder, gates: str, c: str, after: Sequence[str]) -> None:
    """What an LSTM makes of its products' sum <float32>[B, 4H] and c: h' and c', by the names `after`."""
    next_h, next_c = after
    i, f, g, o = graph.split(gates, 4)  # [B, H] each
    kept = graph.node("Mul", graph.node("Sigmoid", f), c)
    added = graph.node("Mul", graph.node("Sigmoid", i), graph.node("Tanh", g))
    graph.node("Add", kept, added, result=next_c)
    graph.node("Mul", graph.node("Sigmoid", o), graph.node("Tanh", next_c), result=next_h)


def _gru(
    graph: GraphBuilder,
    name: str,
    layer: StepGRU,
    from_input: str,
    before: list[str],
    after: list[str],
    multiply: Product,
) -> None:
    (h,) = before
    hidden_weight, hidden_bias = array(layer.hidden_weight).T, array(layer.hidden_bias)  # [H, 3H], [3H]
    from_hidden = multiply(graph, f"{name}.hidden", quantize(graph, h), hidden_weight, hidden_bias)
    open_gru_gates(graph, from_input, from_hidden, h, after)


def open_gru_gates(graph: GraphBuilder, from_input: str, from_hidden: str, h: str, after: Sequence[str]) -> None:
    """What a GRU makes of its two products <float32>[B, 3H] each and h: h', by the name `after`."""
    (next_h,) = after
    input_r, input_z, input_n = graph.split(from_input, 3)  # [B, H] each
    hidden_r, hidden_z, hidden_n = graph.split(from_hidden, 3)
    r = graph.node("Sigmoid", graph.node("Add", input_r, hidden_r))
    z = graph.node("Sigmoid", graph.node("Add", input_z, hidden_z))
    n = graph.node("Tanh", graph.node("Add", input_n, graph.node("Mul", r, hidden_n)))
    moved = graph.node("Mul", z, graph.node("Sub", h, n))  # (1 - z) n + z h = n + z (h - n)
    graph.node("Add", n, moved, result=next_h)


def attempt(graph: GraphBuilder, skill: str, correct: str) -> str:
    """The id of an attempt, 2 * skill + correct. <int64>[B], or [B, T] as its parts"""
    doubled = graph.node("Mul", skill, graph.constant("two", 2, np.int64))
    return graph.node("Add", doubled, correct)


def array(tensor: Tensor) -> Floats:
    """A weight in numpy."""
    return tensor.detach().numpy()
