from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from carousel.export.checks.parity import MAX_ABS_ERROR, ParityError, measure_parity
from carousel.export.onnx_graph import export_step
from carousel.models.nn.language import LanguageModel, LanguageModelConfig


def random_model(cell: str, *, embedding: int, hidden: int, layers: int, tied: bool, std: float = 0.5) -> LanguageModel:
    config = LanguageModelConfig(
        vocabulary_size=17, cell=cell, embedding_size=embedding, hidden_size=hidden, layers=layers, tied=tied
    )
    model = LanguageModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=std, generator=generator)
    return model


@pytest.mark.parametrize(
    ("cell", "embedding", "hidden", "layers", "tied"),
    [
        ("lstm", 5, 7, 1, False),
        ("lstm", 19, 33, 2, True),
        ("lstm", 13, 64, 3, False),
        ("gru", 9, 3, 1, True),
        ("gru", 6, 37, 2, False),
        ("gru", 8, 21, 3, True),
        ("elman", 9, 35, 2, False),
        ("elman", 12, 17, 1, True),
    ],
)
def test_exported_graph_is_the_model_over_a_long_run(
    cell: str, embedding: int, hidden: int, layers: int, tied: bool
) -> None:
    # 1/sqrt(H): at std 0.5 a wide GRU is chaotic, and then any two orders of the same sums part sooner or later.
    model = random_model(cell, embedding=embedding, hidden=hidden, layers=layers, tied=tied, std=hidden**-0.5)
    parity = measure_parity(model, export_step(model.step_module()))
    assert (parity.steps, parity.rows, parity.row_independent) == (512, 4, True)
    assert 0 < parity.max_abs_error < 1e-4


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model("lstm", embedding=5, hidden=7, layers=2, tied=False)


@pytest.fixture(scope="module")
def graph(model: LanguageModel) -> bytes:
    return export_step(model.step_module())


def edited(graph: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    proto = onnx.load_from_string(graph)
    change(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def output_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if name in node.output)


def swap_gates(proto: onnx.ModelProto) -> None:
    gates = next(node for node in proto.graph.node if node.op_type == "Split").output
    gates[0], gates[1] = gates[1], gates[0]


def swap_states(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = {"state.h0": "state.c0", "state.c0": "state.h0"}.get(name, name)


def forget_a_state(proto: onnx.ModelProto) -> None:
    output_of(proto, "next_state.c1").output[0] = "kept"
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = {"next_state.c1": "kept"}.get(name, name)
    proto.graph.node.append(helper.make_node("Identity", ["state.c1"], ["next_state.c1"]))


def nudge_a_bias(proto: onnx.ModelProto) -> None:
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "projection.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] += 2 * MAX_ABS_ERROR["logits"]
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))


def nan_in_a_weight(proto: onnx.ModelProto) -> None:
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "projection.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(17, np.nan, np.float32), bias.name))


@pytest.mark.parametrize("change", [swap_gates, swap_states, forget_a_state, nudge_a_bias, nan_in_a_weight])
def test_measure_parity_refuses_another_model(model: LanguageModel, graph: bytes, change) -> None:
    with pytest.raises(ParityError, match=r"^logits of the exported graph: an entry is off by .* allowed is 0\.001"):
        measure_parity(model, edited(graph, change), steps=64)


def add_to_logits(scale: float, reduction: str) -> Callable[[onnx.ModelProto], None]:
    """logits + scale * reduction(logits over the batch): neighbours leak in."""

    def change(proto: onnx.ModelProto) -> None:
        output_of(proto, "logits").output[0] = "own"
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "scale"))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
        proto.graph.node.extend([
            helper.make_node(reduction, ["own", "batch_axis"], ["all"], keepdims=1),
            helper.make_node("Mul", ["all", "scale"], ["leak"]),
            helper.make_node("Add", ["own", "leak"], ["logits"]),
        ])  # fmt: skip

    return change


def test_measure_parity_refuses_rows_that_depend_on_each_other(model: LanguageModel, graph: bytes) -> None:
    # As dynamic quantisation does, which takes one scale for the whole batch: far too little to see in a logit's error.
    with pytest.raises(
        ParityError, match=r"^logits of row 0 in a batch of 2 .*neighbours' state like its own, 1 threads"
    ):
        measure_parity(model, edited(graph, add_to_logits(1e-6, "ReduceMean")), steps=64)


def test_measure_parity_refuses_rows_that_a_neighbours_nan_reaches(model: LanguageModel, graph: bytes) -> None:
    with pytest.raises(ParityError, match=r"^logits of row 1 in a batch of 2 .*neighbours' state nan, 1 threads"):
        measure_parity(model, edited(graph, add_to_logits(0.0, "ReduceSum")), steps=64)
