"""The step graph of a captioning model in int8; without attention it is a language model's (export/int8_graph.py).

Axes: B batch rows, V vocabulary, E embedding, H hidden units, P image positions, C of a value, A of a key, G of a
cell's gates (4 H or 3 H).

Four products of a step with attention are in int8. Whatever h is multiplied with is one of them, whatever is multiplied
with what was seen is another, and what a word is multiplied with is looked up in a table:

    h    -> what is asked and the gate of what is seen [A + C], the cell's gates [G]
    seen -> the cell's gates [G], the readout [E]
    h'   -> the readout [E]
    said -> logits [V]

The look itself, tanh(keys + query) and the mean of the values, has as many products as positions but none with a weight
matrix; it reads the image's memories, which are float32 and each row's own, and stays float32.
"""

from __future__ import annotations

import numpy as np

from carousel.export.graph_builder import GraphBuilder
from carousel.export.int8_graph import EmbeddedIds, array, build_int8_step, known_layer, open_gru_gates, open_lstm_gates
from carousel.export.int8_product import Floats, product, quantize
from carousel.models.graph import CONTEXT_PREFIX, NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.models.nn.attention import StepAttention
from carousel.models.nn.captioning import LAYER, CaptioningStep
from carousel.models.nn.cells.gru import StepGRU
from carousel.models.nn.cells.lstm import StepLSTM
from carousel.models.step import ATTENTION


def build_int8_captioning_step(step: CaptioningStep, seen_range: float) -> bytes:
    """The int8 ONNX model of one step; inputs and outputs are those of the fp32 graph.

    Args:
        step: the step module, whose weights are rounded.
        seen_range: the largest entry of what attention hands on, measured on validation images, since no bound is
            known; of no account without attention.
    """
    if step.look is None or step.readout is None or step.grid is None:
        return build_int8_step(step)
    graph = GraphBuilder()
    token = graph.input("token", np.int64)
    states = [graph.input(STATE_PREFIX + name, np.float32, *shape) for name, shape in step.state_shapes.items()]
    values, keys = (graph.input(CONTEXT_PREFIX + name, np.float32, *step.memory_shapes[name]) for name in MEMORIES)
    logits, size = step.output, step.projection.out_features
    graph.output(logits, np.float32, size)
    after = [NEXT_STATE_PREFIX + name for name in step.state_shapes]
    for name, shape in zip(after, step.state_shapes.values(), strict=True):
        graph.output(name, np.float32, *shape)
    graph.output(ATTENTION, np.float32, *step.grid)

    layer = known_layer(step.stack.layers[0])
    weights = _Weights(step, layer)
    h = states[list(step.state_shapes).index(LAYER)]
    asked, gates, readout = weights.sizes
    from_token = EmbeddedIds(token, step.embedding.weight).product(graph, "token", weights.token, weights.token_bias)
    asked_by_token, token_gates, token_readout = graph.split_into(from_token, weights.sizes)
    from_hidden = product(graph, "hidden", quantize(graph, h), weights.hidden, weights.hidden_bias)
    asked_by_hidden, hidden_gates = graph.split_into(from_hidden, [asked, gates])
    seen = _look(
        graph, step.look, graph.node("Add", asked_by_token, asked_by_hidden), values, keys, step.grid
    )  # [B, C]
    from_seen = product(graph, "seen", quantize(graph, seen, seen_range), weights.seen)
    seen_gates, seen_readout = graph.split_into(from_seen, [gates, readout])
    input_gates = graph.node("Add", token_gates, seen_gates)
    if isinstance(layer, StepLSTM):
        open_lstm_gates(graph, graph.node("Add", input_gates, hidden_gates), states[1], after)
    else:
        open_gru_gates(graph, input_gates, hidden_gates, h, after)
    read = product(graph, "readout", quantize(graph, NEXT_STATE_PREFIX + LAYER), weights.readout)
    said = graph.node("Tanh", graph.node("Add", read, graph.node("Add", seen_readout, token_readout)))  # [B, E]
    weight, bias = array(step.projection.weight).T, array(step.projection.bias)
    product(graph, "projection", quantize(graph, said), weight, bias, result=logits)
    return graph.model("step")


MEMORIES = ("values", "keys")


class _Weights:
    """A step's matrices by what is multiplied with them, each <float32>[inputs, outputs]."""

    def __init__(self, step: CaptioningStep, layer: StepLSTM | StepGRU) -> None:
        assert step.look is not None
        assert step.readout is not None
        embedding, (hidden,) = step.embedding.embedding_dim, step.state_shapes[LAYER]
        if isinstance(layer, StepLSTM):
            both, gates_bias = array(layer.weight).T, array(layer.bias)  # [E + C + H, 4H]: of [x; seen; h]
            input_gates, hidden_gates = both[:-hidden], both[-hidden:]
            hidden_gates_bias = np.zeros_like(gates_bias)
        else:
            input_gates, gates_bias = array(layer.input_weight).T, array(layer.input_bias)  # [E + C, 3H], [3H]
            hidden_gates, hidden_gates_bias = array(layer.hidden_weight).T, array(layer.hidden_bias)  # [H, 3H], [3H]
        asked, readout = array(step.look.weight).T, array(step.readout.weight).T  # [H + E, A + C], [H + C, E]
        self.sizes = [asked.shape[1], input_gates.shape[1], embedding]
        """A + C, G, E."""
        # The readout adds the word itself: the unit matrix gives it a place in the table.
        unit = np.eye(embedding, dtype=np.float32)
        self.token: Floats = np.hstack([asked[hidden:], input_gates[:embedding], unit])  # [E, A + C + G + E]
        self.token_bias: Floats = np.hstack([array(step.look.bias), gates_bias, array(step.readout.bias)])
        self.hidden: Floats = np.hstack([asked[:hidden], hidden_gates])  # [H, A + C + G]
        self.hidden_bias: Floats = np.hstack([np.zeros(asked.shape[1], np.float32), hidden_gates_bias])
        self.seen: Floats = np.hstack([input_gates[embedding:], readout[hidden:]])  # [C, G + E]
        self.readout: Floats = readout[:hidden]  # [H, E]


def _look(graph: GraphBuilder, look: StepAttention, asked: str, values: str, keys: str, grid: tuple[int, int]) -> str:
    """What StepAttention sees <float32>[B, C]; says where, too."""
    query, gate = graph.split_into(asked, look.sizes)  # [B, A], [B, C]
    one, two = graph.constant("axis_1", [1], np.int64), graph.constant("axis_2", [2], np.int64)
    heard = graph.node("Tanh", graph.node("Add", keys, graph.node("Unsqueeze", query, one)))  # [B, P, A]
    energy = graph.node("MatMul", heard, graph.constant("energy", array(look.energy.weight).T, np.float32))  # [B, P, 1]
    alpha = graph.node("Softmax", graph.node("Squeeze", energy, two), axis=1)  # [B, P]
    graph.node("Reshape", alpha, graph.constant("grid", [0, *grid], np.int64), result=ATTENTION)
    mean = graph.node("MatMul", graph.node("Unsqueeze", alpha, one), values)  # [B, 1, C]
    return graph.node("Mul", graph.node("Sigmoid", gate), graph.node("Squeeze", mean, one))
