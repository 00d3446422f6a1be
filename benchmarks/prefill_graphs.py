"""`python -m benchmarks.prefill_graphs`: the graphs that the prefill graphs were chosen from, in a bare loop.

The int8 graphs of a 2x512 LSTM with 10,000 words and random weights, one row to sixteen. Processor time, which other
load on the machine does not change much; the variants take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from carousel.benchmarks import numbers
from carousel.benchmarks.report import Machine
from carousel.benchmarks.turns import UNITS, WORDS, model_of, take_turns
from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.models.graph import ABOVE, NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.service.engine.parameters import Array

STEPS = 64
ROWS = (1, 4, 8, 16)


def bare_graph(step: bytes) -> bytes:
    """The step graph without its projection to logits."""
    graph = onnx.load_from_string(step).graph
    nodes, weights = _recurrent(graph)
    outputs = [value for value in graph.output if value.name != "logits"]
    return _model(helper.make_graph(nodes, "bare", graph.input, outputs, weights))


def scan_graph(step: bytes) -> bytes:
    """The step graph without its projection as the body of one Scan. tokens int64[batch, steps]"""
    graph = onnx.load_from_string(step).graph
    nodes, weights = _recurrent(graph)
    states = [value for value in graph.input if value.name.startswith(STATE_PREFIX)]
    afters = [value for value in graph.output if value.name.startswith(NEXT_STATE_PREFIX)]
    token = helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"])
    body = helper.make_graph(nodes, "body", [*states, token], afters)

    def outer(prefix: str, values: list[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(prefix + value.name, TensorProto.FLOAT, ["batch", UNITS]) for value in values
        ]

    ids = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "steps"])
    before, after = outer("in.", states), outer("out.", afters)
    names = [value.name for value in before]
    scan = helper.make_node("Scan", [*names, "by_step"], [value.name for value in after], body=body, num_scan_inputs=1)
    transposed = helper.make_node("Transpose", ["tokens"], ["by_step"], perm=[1, 0])
    return _model(helper.make_graph([transposed, scan], "scan", [ids, *before], after, weights))


def _recurrent(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [node for node in graph.node if "logits" not in node.output]
    used = {name for node in nodes for name in node.input}
    return nodes, [tensor for tensor in graph.initializer if tensor.name in used]


def _model(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _fed(session: onnxruntime.InferenceSession, eaten: Array) -> dict[str, Array]:
    """What a graph eats, and states of zeros."""
    return {
        spec.name: np.zeros((len(eaten), UNITS), np.float32) if STATE_PREFIX in spec.name else eaten
        for spec in session.get_inputs()
    }


def _by_steps(session: onnxruntime.InferenceSession, ids: Array) -> None:
    fed = _fed(session, ids)
    states = [name for name in fed if name.startswith(STATE_PREFIX)]
    for column in ids.T:
        after = session.run(None, {**fed, "token": column})
        fed |= dict(zip(states, after[-len(states) :], strict=True))


def _by_layers(sessions: Sequence[onnxruntime.InferenceSession], ids: Array) -> None:
    eaten = ids
    for session in sessions:
        names = [spec.name for spec in session.get_outputs()]
        said = dict(zip(names, session.run(names, _fed(session, eaten)), strict=True))
        eaten = said.get(ABOVE, eaten)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill_graphs", description="Many steps in one call.")
    parser.add_argument("--rounds", type=numbers.count, default=15, help="turns of each variant (15)")
    rounds = parser.parse_args().rounds
    model = model_of()
    step, _ = int8_step(export_step(model))
    parts = prefill_graphs(step)
    print(f"machine  {Machine.this()}")
    print(
        f"model    2x{UNITS} LSTM, {WORDS:,} words, int8: step.onnx of {len(step) / 1e6:.1f} MB, prefill graphs of ",
        end="",
    )
    print(f"{' and '.join(f'{len(part) / 1e6:.1f}' for part in parts)}; one thread, processor time, {rounds} turns\n")
    print(f"| rows x {STEPS} tokens | step | step without projection | one Scan | layer by layer (shipped) |")
    print("|---:|---:|---:|---:|---:|")
    whole, bare, scan = _session(step), _session(bare_graph(step)), _session(scan_graph(step))
    layers = [_session(part) for part in parts]
    for rows in ROWS:
        ids = np.random.default_rng(rows).integers(0, WORDS, (rows, STEPS))
        taken = take_turns({
            "step": partial(_by_steps, whole, ids),
            "bare": partial(_by_steps, bare, ids),
            "scan": partial(scan.run, None, _fed(scan, ids)),
            "layers": partial(_by_layers, layers, ids),
        }, rounds)  # fmt: skip
        slow = taken["step"].processor
        cells = [f" {each.processor / ids.size * 1e6:.0f} us ({slow / each.processor:.1f}) " for each in taken.values()]
        print(f"| {rows} |" + "|".join(cells) + "|", flush=True)


if __name__ == "__main__":
    main()
