"""Would a prefill graph, many steps in one call, earn its place beside the step graph? `python -m benchmarks.prefill`.

Three candidates for one row of a 2x512 LSTM with 10,000 tokens, random weights, one thread:
    bare   the step graph less its projection, called T - 1 times, then the step graph: what leaving out logits gives
    scan   the step graph's own nodes as the body of an ONNX Scan, logits of the last step only
    lstm   the ONNX LSTM operator over T steps, logits of the last step only
Each is timed per token against the step graph called T times, and its results are compared with the step graph's bit
by bit: a prompt must leave the same state however it was fed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from export.onnx_graph import export_step
from export.step_module import LanguageStep
from models.graph import NEXT_STATE_PREFIX, STATE_PREFIX
from models.nn.language import LanguageModel, LanguageModelConfig

ROUNDS = 7
LENGTHS = (16, 64, 256)


def bare_graph(step: bytes) -> bytes:
    """The step graph without its projection to logits."""
    model = onnx.load_from_string(step)
    graph = model.graph
    nodes = [node for node in graph.node if "logits" not in node.output]
    outputs = [value for value in graph.output if value.name != "logits"]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    return _model(helper.make_graph(nodes, "bare", graph.input, outputs, weights))


def scan_graph(step: bytes, config: LanguageModelConfig) -> bytes:
    """The step graph with all but its last node, the projection, moved into the body of a Scan. token int64[T, 1]"""
    model = onnx.load_from_string(step)
    graph, names = model.graph, list(LanguageStep(LanguageModel(config)).state_sizes)
    last = f"{NEXT_STATE_PREFIX}h{config.layers - 1}"
    projection = next(node for node in graph.node if "logits" in node.output)
    body = helper.make_graph(
        [node for node in graph.node if node is not projection],
        "body",
        [value for name in names for value in graph.input if value.name == STATE_PREFIX + name]
        + [helper.make_tensor_value_info("token", TensorProto.INT64, [1])],
        [value for name in names for value in graph.output if value.name == NEXT_STATE_PREFIX + name],
    )
    states = [STATE_PREFIX + name for name in names]
    scan = helper.make_node(
        "Scan", ["in_" + s for s in states] + ["tokens"], ["out_" + s for s in states], body=body, num_scan_inputs=1
    )
    projection.input[0] = "out_" + last.replace(NEXT_STATE_PREFIX, STATE_PREFIX)
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", 1])]
    inputs += [helper.make_tensor_value_info("in_" + s, TensorProto.FLOAT, [1, config.hidden_size]) for s in states]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, config.vocabulary_size])]
    outputs += [helper.make_tensor_value_info("out_" + s, TensorProto.FLOAT, [1, config.hidden_size]) for s in states]
    return _model(helper.make_graph([scan, projection], "scan", inputs, outputs, graph.initializer))


def lstm_graph(model: LanguageModel) -> bytes:
    """Embedding, one LSTM operator a layer, projection of the last step. tokens int64[T, 1]"""
    config = model.config
    weights = {"embedding": model.embedding.weight, "P": model.projection.weight, "b": model.projection.bias}
    nodes = [helper.make_node("Gather", ["embedding", "tokens"], ["x0"])]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", 1])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, config.vocabulary_size])]
    for depth, layer in enumerate(model.stack.typed_layers()):
        rnn = dict(layer.rnn.named_parameters())
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            i, f, g, o = rnn[name].chunk(4)  # torch's order of gates; ONNX's is i, o, f, c
            weights[f"{name}.{depth}"] = torch.cat([i, o, f, g]).unsqueeze(0)
        weights[f"B{depth}"] = torch.cat([weights.pop(f"bias_ih_l0.{depth}"), weights.pop(f"bias_hh_l0.{depth}")], 1)
        operands = [f"x{depth}", f"weight_ih_l0.{depth}", f"weight_hh_l0.{depth}", f"B{depth}", ""]
        operands += [f"in_state.h{depth}", f"in_state.c{depth}"]
        results = [f"y{depth}", f"out_state.h{depth}", f"out_state.c{depth}"]
        nodes.append(helper.make_node("LSTM", operands, results, hidden_size=layer.hidden_size))
        nodes.append(helper.make_node("Squeeze", [f"y{depth}", "one"], [f"x{depth + 1}"]))
        for kind in ("h", "c"):
            shape = [1, 1, layer.hidden_size]
            inputs.append(helper.make_tensor_value_info(f"in_state.{kind}{depth}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(f"out_state.{kind}{depth}", TensorProto.FLOAT, shape))
    nodes.append(helper.make_node("Squeeze", [f"out_state.h{config.layers - 1}", "zero"], ["last"]))
    nodes.append(helper.make_node("Gemm", ["last", "P", "b"], ["logits"], transB=1))
    initializers = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(np.array([axis]), name) for axis, name in enumerate(("zero", "one"))]
    return _model(helper.make_graph(nodes, "lstm", inputs, outputs, initializers))


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _fastest(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call's fastest round; rounds take turns, so that other load meets all alike."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print one line a length and candidate."""
    torch.manual_seed(0)
    config = LanguageModelConfig(10_000, embedding_size=512, hidden_size=512, layers=2)
    model = LanguageModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=512**-0.5)
    graph = export_step(LanguageStep(model))
    step, bare = _session(graph), _session(bare_graph(graph))
    lstm, scan = _session(lstm_graph(model)), _session(scan_graph(graph, config))
    names = list(model.stack.state_sizes)
    zeros = {name: np.zeros((1, 512), np.float32) for name in names}
    order = ["logits", *(NEXT_STATE_PREFIX + name for name in names)]
    many_order = ["logits", *(f"out_state.{name}" for name in names)]

    for length in LENGTHS:
        tokens = np.random.default_rng(length).integers(0, config.vocabulary_size, (length, 1))

        def by_steps(tokens: Any = tokens) -> list[Any]:
            state = {STATE_PREFIX + name: part for name, part in zeros.items()}
            results: list[Any] = []
            for token in tokens:
                results = step.run(order, {"token": token, **state})
                state = dict(zip(state, results[1:], strict=True))
            return results

        def by_bare_steps(tokens: Any = tokens) -> list[Any]:
            state = {STATE_PREFIX + name: part for name, part in zeros.items()}
            for token in tokens[:-1]:
                state = dict(zip(state, bare.run(order[1:], {"token": token, **state}), strict=True))
            return list(step.run(order, {"token": tokens[-1], **state}))

        def by_lstm(tokens: Any = tokens) -> list[Any]:
            state = {f"in_state.{name}": part[None] for name, part in zeros.items()}
            return list(lstm.run(many_order, {"tokens": tokens, **state}))

        def by_scan(tokens: Any = tokens) -> list[Any]:
            state = {f"in_state.{name}": part for name, part in zeros.items()}
            return list(scan.run(many_order, {"tokens": tokens, **state}))

        truth = by_steps()
        seconds = _fastest({"step": by_steps, "bare": by_bare_steps, "scan": by_scan, "lstm": by_lstm})
        print(f"T={length:<4} step  {seconds['step'] / length * 1e6:6.0f} us/token")
        for name, call in (("bare", by_bare_steps), ("scan", by_scan), ("lstm", by_lstm)):
            pairs = [(seen.ravel(), expected.ravel()) for seen, expected in zip(call(), truth, strict=True)]
            error = max(float(np.abs(seen - expected).max()) for seen, expected in pairs)
            identical = all(seen.tobytes() == expected.tobytes() for seen, expected in pairs)
            print(
                f"T={length:<4} {name}  {seconds[name] / length * 1e6:6.0f} us/token, "
                f"{seconds['step'] / seconds[name]:.2f} times as fast, "
                f"{'bit-identical' if identical else f'not bit-identical (largest difference {error:.1e})'}"
            )


if __name__ == "__main__":
    main()
