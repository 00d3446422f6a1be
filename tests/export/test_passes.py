"""Passes on graphs that nobody here exported: what has no bound is measured or refused, never cut off in silence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.export.passes.bounds import Interval, bounds
from carousel.export.passes.graph import Graph
from carousel.export.passes.int8 import NoBound
from carousel.export.passes.prefill import NoPrefill
from carousel.export.passes.products import plain
from carousel.export.passes.recipe import int8_step, prefill_graphs

H, E, V, Y = 6, 5, 11, 4
RANDOM = np.random.default_rng(2)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, 0.4, shape).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    widths: dict[str, int],
    ids: tuple[str, ...] = ("token",),
) -> bytes:
    """A step graph: ids and states in, `logits` and the next states out; `widths` of the float inputs."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in ids]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in widths.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", Y])]
    outputs += [
        helper.make_tensor_value_info(f"next_{name}", TensorProto.FLOAT, ["batch", size])
        for name, size in widths.items()
        if name.startswith("state.")
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def elman(activation: str, domain: str = "") -> bytes:
    """h' = activation([x; h] W + b)"""
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["x"]),
        helper.make_node("Concat", ["x", "state.h"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w", "b"], ["sum"], transB=1),
        helper.make_node(activation, ["sum"], ["next_state.h"], domain=domain),
        helper.make_node("Gemm", ["next_state.h", "out"], ["logits"]),
    ]
    constants = {"embedding": weight(V, E), "w": weight(H, E + H), "b": weight(H), "out": weight(H, Y)}
    return model_of(nodes, constants, {"state.h": H})


def projected() -> bytes:
    """An LSTM's h, projected to fewer units than its cell has: h' = (o * tanh(c')) P."""
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["x"]),
        helper.make_node("Concat", ["x", "state.h"], ["both"], axis=-1),
        helper.make_node("MatMul", ["both", "w"], ["product"]),
        helper.make_node("Add", ["b", "product"], ["gates"]),
        helper.make_node("Split", ["gates"], ["i", "f", "o", "g"], axis=-1, num_outputs=4),
        *(helper.make_node("Sigmoid", [name], [f"open_{name}"]) for name in "ifo"),
        helper.make_node("Tanh", ["g"], ["new"]),
        helper.make_node("Mul", ["open_f", "state.c"], ["kept"]),
        helper.make_node("Mul", ["open_i", "new"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["next_state.c"]),
        helper.make_node("Tanh", ["next_state.c"], ["squashed"]),
        helper.make_node("Mul", ["open_o", "squashed"], ["full"]),
        helper.make_node("MatMul", ["full", "p"], ["next_state.h"]),
        helper.make_node("MatMul", ["next_state.h", "out"], ["logits"]),
    ]
    constants = {"embedding": weight(V, E), "w": weight(E + 3, 4 * H), "b": weight(4 * H), "p": weight(H, 3)}
    return model_of(nodes, constants | {"out": weight(3, Y)}, {"state.h": 3, "state.c": H})


def three_inputs() -> bytes:
    """A GRU-like mix over [word; tag; numbers; h]."""
    nodes = [
        helper.make_node("Gather", ["words", "token"], ["word"]),
        helper.make_node("Gather", ["tags", "tag"], ["tagged"]),
        helper.make_node("Concat", ["word", "tagged", "numbers", "state.h"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "w"], ["sums"]),
        helper.make_node("Split", ["sums"], ["z", "n"], axis=1, num_outputs=2),
        helper.make_node("Sigmoid", ["z"], ["share"]),
        helper.make_node("Tanh", ["n"], ["new"]),
        helper.make_node("Sub", ["one", "share"], ["rest"]),
        helper.make_node("Mul", ["state.h", "rest"], ["kept"]),
        helper.make_node("Mul", ["share", "new"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["next_state.h"]),
        helper.make_node("MatMul", ["next_state.h", "out"], ["logits"]),
    ]
    constants = {"words": weight(V, E), "tags": weight(7, 3), "w": weight(E + 3 + 2 + H, 2 * H), "out": weight(H, Y)}
    return model_of(nodes, constants | {"one": np.float32(1)}, {"numbers": 2, "state.h": H}, ("token", "tag"))


def fed(graph: bytes, rows: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        spec.name: random.integers(0, 7, rows)
        if spec.type == "tensor(int64)"
        else random.uniform(-1, 1, (rows, spec.shape[1])).astype(np.float32)
        for spec in onnxruntime.InferenceSession(graph).get_inputs()
    }


def run(graph: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph)
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def near(graph: bytes, rounded: bytes) -> None:
    inputs = fed(graph)
    seen, truth = run(rounded, inputs), run(graph, inputs)
    for name, value in truth.items():
        assert seen[name].shape == value.shape
        assert 0 < np.abs(seen[name] - value).max() < 0.05, name


def measured(*largest: float) -> Callable[..., dict[str, float]]:
    return lambda model, values: dict(zip(values, largest, strict=True))


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_a_relu_state_without_data_is_refused_by_node_and_tensor() -> None:
    with pytest.raises(NoBound, match=r"MatMul of 'matmul_\d+' reads 'state.h', which may be of any size.*give data"):
        int8_step(elman("Relu"))


def test_a_relu_state_is_rounded_as_far_as_data_go() -> None:
    graph = elman("Relu")
    rounded, left = int8_step(graph, measure=measured(3.0, 3.0))
    assert not left
    near(graph, rounded)
    scales = {tensor.name for tensor in onnx.load_from_string(rounded).graph.initializer if "scale." in tensor.name}
    assert "scale.3.0" in scales
    with pytest.raises(NoBound, match="on the data it is no number"):
        int8_step(graph, measure=measured(float("nan"), 1.0))


def test_a_tanh_state_needs_no_data() -> None:
    graph = elman("Tanh")
    rounded, left = int8_step(graph)
    assert (left, operators(rounded).count("MatMulIntegerToFloat")) == ([], 2)  # of x and W there is a table
    assert "GatherBlockQuantized" in operators(rounded)
    near(graph, rounded)


def test_a_state_that_begins_beyond_its_steps_keeps_its_bound() -> None:
    graph = Graph(onnx.load_from_string(elman("Tanh")))
    assert bounds(graph)["state.h"].largest == 1
    assert bounds(graph, {"state.h": Interval(-2.5, 0.0)})["state.h"] == Interval(-2.5, 1.0)


def test_a_projected_state_takes_the_nearer_of_bound_and_data() -> None:
    graph = projected()
    interval = bounds(Graph(plain(onnx.load_from_string(graph))))["state.h"]
    assert interval.loose
    assert 1 < interval.largest < 6  # of six terms in [-1, 1]
    near(graph, int8_step(graph)[0])  # never beyond what can be
    near(graph, int8_step(graph, measure=measured(1.5, 1.5))[0])


def test_three_inputs_are_each_rounded_by_themselves() -> None:
    graph = three_inputs()
    with pytest.raises(NoBound, match="reads 'numbers'"):
        int8_step(graph)
    rounded, left = int8_step(graph, {"numbers": Interval(-1.0, 1.0)})
    assert not left
    assert operators(rounded).count("GatherBlockQuantized") == 2
    assert bounds(Graph(onnx.load_from_string(graph)))["state.h"] == Interval(-1.0, 1.0)
    near(graph, rounded)


def test_a_product_behind_an_unknown_operator_stays_in_fp32_and_is_named() -> None:
    graph = elman("QuickGelu", "com.microsoft")
    rounded, left = int8_step(graph)
    assert len(left) == 2
    assert "comes of QuickGelu of 'next_state.h', an unknown operator" in left[0]
    assert operators(rounded).count("MatMul") == 2
    near(graph, rounded)


@pytest.mark.parametrize("graph", [elman("Tanh"), projected()], ids=["elman", "projected"])
def test_prefill_of_a_foreign_graph_leaves_its_states_bit_for_bit(graph: bytes) -> None:
    step = int8_step(graph)[0]
    (prefill,) = prefill_graphs(step)
    inputs = fed(step)
    ids = np.random.default_rng(3).integers(0, V, (5, 40))
    states = {name: value for name, value in inputs.items() if name != "token"}
    after = run(prefill, {"token": ids, **states})
    for column in ids.T:
        said = run(step, {"token": column, **states})
        states = {name: said[f"next_{name}"] for name in states}
    assert {name: after[f"next_{name}"].tobytes() for name in states} == {n: v.tobytes() for n, v in states.items()}


def test_prefill_that_cannot_be_made_says_why() -> None:
    with pytest.raises(NoPrefill, match="a step reads 'numbers', which is no id"):
        prefill_graphs(three_inputs())
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["x"]),
        helper.make_node("QuickGelu", ["x"], ["bent"], domain="com.microsoft"),
        helper.make_node("Add", ["bent", "state.h"], ["next_state.h"]),
        helper.make_node("Identity", ["next_state.h"], ["logits"]),
    ]
    with pytest.raises(NoPrefill, match="QuickGelu of 'bent' is not known to run over all steps at once"):
        prefill_graphs(model_of(nodes, {"embedding": weight(V, Y)}, {"state.h": Y}))
