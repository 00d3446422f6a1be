"""Many steps of the int8 graph in one call, layer by layer: the same bits, without what a prompt does not need.

Axes: B batch rows, T steps, H hidden units.

What a layer makes of its input does not wait for the step before: it is one product over all steps. Only what it makes
of its own h is computed step by step, in a Scan, and nothing is projected to logits. Sums are over integers and
everything else works on one number at a time, so each value is the step graph's, bit for bit (export/prefill_parity.py
makes sure).
"""

from __future__ import annotations

import numpy as np

from export.graph_builder import GraphBuilder
from export.int8_graph import EmbeddedIds, HiddenUnits, LayerInput, attempt, input_product, next_states
from export.int8_product import Activation, product_of_few, quantize
from export.step_module import StepGRU, StepLSTM, StepModule
from models.graph import NEXT_STATE_PREFIX, STATE_PREFIX


def build_int8_prefill(step: StepModule) -> bytes:
    """The int8 ONNX model of T steps (models/prefill.py), from the step module whose weights build_int8_step rounds."""
    graph = GraphBuilder()
    ids = [graph.input(name, np.int64, "steps") for name in step.input_bounds]  # [B, T] each
    for name, size in step.state_sizes.items():
        graph.input(STATE_PREFIX + name, np.float32, size)
        graph.output(NEXT_STATE_PREFIX + name, np.float32, size)
    eaten = attempt(graph, *ids) if step.task == "tracing" else ids[0]
    by_step = graph.node("Transpose", eaten, perm=[1, 0])  # [T, B]
    below: LayerInput = EmbeddedIds(by_step, step.embedding.weight)
    layers = list(zip(step.stack.layers, step.stack.state_kinds, strict=True))
    for depth, (layer, kinds) in enumerate(layers):
        assert isinstance(layer, StepLSTM | StepGRU)
        from_input = input_product(graph, f"layer{depth}", layer, below)  # [T, B, 4H] or [T, B, 3H]
        names = [f"{kind}{depth}" for kind in kinds]
        width = step.state_sizes[names[0]]
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
            results.append(f"layer{depth}.rounded")  # [T, B, H]
            below = HiddenUnits(Activation(results[-1], rounded.range))
        graph.scan(body, [STATE_PREFIX + name for name in names], [from_input], results)
    return graph.model("prefill")
