"""Many steps of the int8 graph in one call, layer by layer: the same bits, without what a prompt does not need.

Axes: B batch rows, T steps, H hidden units.

What a layer makes of its input does not wait for the step before: it is one product over all steps. Only what it makes
of its own h is computed step by step, in a Scan, and nothing is projected to logits. Sums are over integers and
everything else works on one number at a time, so each value is the step graph's, bit for bit (export/prefill_parity.py
makes sure). Each layer is a graph of its own, so that one may work on a part of the ids while the layer below works on
the next (service/engine/prefill/runner.py).
"""

from __future__ import annotations

import numpy as np

from carousel.export.graph_builder import GraphBuilder
from carousel.export.int8_graph import EmbeddedIds, HiddenUnits, attempt, input_product, known_layer, next_states
from carousel.export.int8_product import Activation, product_of_few, quantize
from carousel.models.graph import ABOVE, BELOW, NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.models.nn.cells.lstm import StepLSTM
from carousel.models.nn.network import StepModule


def build_int8_prefill(step: StepModule) -> list[bytes]:
    """The int8 ONNX models of T steps (models/signature.py), from the step module whose weights build_int8_step rounds.

    One for each layer, the lowest first.
    """
    layers = list(zip(step.stack.layers, step.stack.state_kinds, strict=True))
    graphs: list[bytes] = []
    width = 0
    for depth, (layer, kinds) in enumerate(layers):
        layer = known_layer(layer)
        graph = GraphBuilder()
        below = _ids(graph, step) if depth == 0 else _units(graph, width)
        names = [f"{kind}{depth}" for kind in kinds]
        (width,) = step.state_shapes[names[0]]
        for name in names:
            graph.input(STATE_PREFIX + name, np.float32, width)
            graph.output(NEXT_STATE_PREFIX + name, np.float32, width)
        from_input = input_product(graph, f"layer{depth}", layer, below)  # [T, B, 4H] or [T, B, 3H]
        body = graph.body(f"steps{depth}")
        before = [body.input(f"steps{depth}.{name}", np.float32, width) for name in names]
        part = body.input(f"steps{depth}.input", np.float32, width * (4 if isinstance(layer, StepLSTM) else 3))
        after = [f"steps{depth}.next.{name}" for name in names]
        next_states(body, f"layer{depth}", layer, part, before, after, product_of_few)
        for name in after:
            body.output(name, np.float32, width)
        results = [NEXT_STATE_PREFIX + name for name in names]
        if depth + 1 < len(layers):
            rounded = quantize(body, after[0])  # as the layer above reads it
            body.output(rounded.name, np.uint8, width)
            results.append("rounded")  # [T, B, H]
            graph.output(ABOVE, np.uint8, "steps", width)
        graph.scan(body, [STATE_PREFIX + name for name in names], [from_input], results)
        if depth + 1 < len(layers):
            graph.node("Transpose", "rounded", perm=[1, 0, 2], result=ABOVE)  # [B, T, H]
        graphs.append(graph.model(f"prefill{depth}"))
    return graphs


def _ids(graph: GraphBuilder, step: StepModule) -> EmbeddedIds:
    """What the lowest layer eats: ids <int64>[T, B]."""
    ids = [graph.input(name, np.int64, "steps") for name in step.input_bounds]  # [B, T] each
    eaten = attempt(graph, *ids) if len(ids) > 1 else ids[0]
    return EmbeddedIds(graph.node("Transpose", eaten, perm=[1, 0]), step.embedding.weight)


def _units(graph: GraphBuilder, width: int) -> HiddenUnits:
    """What another layer eats: what the one below has handed up <uint8>[T, B, H]."""
    below = graph.input(BELOW, np.uint8, "steps", width)  # [B, T, H]
    return HiddenUnits(Activation(graph.node("Transpose", below, perm=[1, 0, 2]), 1.0))
