"""The int8 step graph against the same arithmetic in numpy, whole numbers and all."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from carousel.export.checks.parity import ParityError, measure_parity
from carousel.export.onnx_graph import export_step
from carousel.export.passes import tables
from carousel.export.passes.recipe import int8_step
from carousel.export.passes.rounding import ACTIVATION_LEVELS, WEIGHT_LEVELS, ZERO_POINT, quantize_columns
from carousel.export.passes.tables import TABLE_BLOCK, quantize_blocks
from carousel.models.graph import TensorSpec, read_graph
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from tests.manifests import output_size_of

SIZES = [
    ("lstm", 7, 9, 1, False),
    ("lstm", 5, 11, 2, True),
    ("lstm", 3, 71, 1, False),  # a row of the table is longer than a block
    ("gru", 6, 8, 2, False),
    ("gru", 9, 4, 3, True),
]


def int8_of(step):
    return int8_step(export_step(step))[0]


def random_model(
    cell: str, embedding: int, hidden: int, layers: int, tied: bool, vocabulary: int = 17
) -> LanguageModel:
    model = LanguageModel(
        LanguageModelConfig(
            vocabulary_size=vocabulary,
            cell=cell,
            embedding_size=embedding,
            hidden_size=hidden,
            layers=layers,
            tied=tied,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.4, generator=generator)
    return model


def run(graph: bytes, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def random_step(model: LanguageModel | TracingModel, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    state = {
        f"state.{name}": np.tanh(random.standard_normal((rows, *shape))).astype(np.float32)
        for name, shape in model.stack.state_shapes.items()
    }
    return {"token": random.integers(0, 17, rows), **state}


def rounded_product(x: np.ndarray, weight: np.ndarray, range_: float = 1.0) -> np.ndarray:
    """x W as the int8 graph has it: both sides rounded to their grids, the sum over integers. [B, K], [N, K]"""
    quantized = quantize_columns(weight.T)
    whole = np.clip(np.rint(x / np.float32(range_ / ACTIVATION_LEVELS)), -ZERO_POINT, 255 - ZERO_POINT)
    return (whole.astype(np.int64) @ quantized.values.astype(np.int64)) * quantized.scales * range_ / ACTIVATION_LEVELS


def rounded_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of the table as the int8 graph has them: each block of TABLE_BLOCK entries on a grid of its own. [B, N]"""
    rounded = np.empty_like(rows)
    for start in range(0, rows.shape[1], TABLE_BLOCK):
        block = rows[:, start : start + TABLE_BLOCK]
        scale = np.abs(block).max(axis=1, keepdims=True) / ACTIVATION_LEVELS
        rounded[:, start : start + TABLE_BLOCK] = np.rint(block / scale) * scale
    return rounded


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def expected_step(
    model: LanguageModel, fed: dict[str, np.ndarray], seen: dict[str, np.ndarray], table: bool
) -> dict[str, np.ndarray]:
    """Each layer from the weights; what a layer reads from below is what the graph says of it (`seen`)."""
    embedding = model.embedding.weight.detach().numpy()
    x, expected = embedding[fed["token"]], {}
    for depth, layer in enumerate(model.stack.cells()):
        rnn = {name: value.detach().numpy() for name, value in layer.rnn.named_parameters()}
        w_ih, w_hh = rnn["weight_ih_l0"], rnn["weight_hh_l0"]
        range_ = 1.0 if depth else float(np.abs(embedding).max())
        looked_up = table and depth == 0
        # An LSTM's two biases are one, on the input's side: the table holds the sum of all that it stands for.
        both = layer.states == ("h", "c")
        from_x = (x @ w_ih.T if looked_up else rounded_product(x, w_ih, range_)) + rnn["bias_ih_l0"]
        from_x = from_x + both * rnn["bias_hh_l0"]
        from_x = rounded_rows(from_x) if looked_up else from_x
        h = fed[f"state.h{depth}"]
        from_h = rounded_product(h, w_hh) + (not both) * rnn["bias_hh_l0"]
        if layer.states == ("h", "c"):
            i, f, g, o = np.split(from_x + from_h, 4, axis=1)
            c = sigmoid(f) * fed[f"state.c{depth}"] + sigmoid(i) * np.tanh(g)
            expected |= {f"next_state.c{depth}": c, f"next_state.h{depth}": sigmoid(o) * np.tanh(c)}
        else:
            (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
            z = sigmoid(xz + hz)
            expected[f"next_state.h{depth}"] = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        x = seen[f"next_state.h{depth}"]
    projection = model.projection
    expected["logits"] = rounded_product(x, projection.weight.detach().numpy()) + projection.bias.detach().numpy()
    return expected


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("cell", "embedding", "hidden", "layers", "tied"), SIZES)
def test_int8_step_is_the_rounded_arithmetic(
    monkeypatch: pytest.MonkeyPatch, cell: str, embedding: int, hidden: int, layers: int, tied: bool, table: bool
) -> None:
    if not table:
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 0)
    model = random_model(cell, embedding, hidden, layers, tied)
    fed = random_step(model, rows=3)
    seen = run(int8_of(model.step_module()), fed)
    expected = expected_step(model, fed, seen, table)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, atol=2e-6, err_msg=name)


def test_int8_weights_cannot_saturate_sixteen_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32) * [1, 10, 1e-3, 0, 1e4]
    quantized = quantize_columns(weight.astype(np.float32))
    assert np.abs(quantized.values).max(axis=0).tolist() == [WEIGHT_LEVELS, WEIGHT_LEVELS, WEIGHT_LEVELS, 0, 63]
    assert np.iinfo(np.int16).max >= 2 * (ZERO_POINT + ACTIVATION_LEVELS) * WEIGHT_LEVELS
    error = np.abs(quantized.values * quantized.scales - weight)
    assert (error <= quantized.scales * 0.5001).all()


def test_a_tables_blocks_are_rounded_each_by_itself() -> None:
    table = np.random.default_rng(0).standard_normal((5, 2 * TABLE_BLOCK + 3)).astype(np.float32)
    table[1, TABLE_BLOCK:] *= 1e-3
    table[2, :TABLE_BLOCK] = 0
    table[3, -1] = 1e4
    whole, scales = quantize_blocks(table)
    assert scales.shape == (5, 3)
    assert (whole.min(), whole.max()) == (ZERO_POINT - ACTIVATION_LEVELS, ZERO_POINT + ACTIVATION_LEVELS)
    spread = np.repeat(scales, TABLE_BLOCK, axis=1)[:, : table.shape[1]]
    error = np.abs((whole.astype(np.float32) - ZERO_POINT) * spread - table)
    assert (error <= spread * 0.5001).all()
    assert not error[2, :TABLE_BLOCK].any()


@pytest.mark.parametrize("table", [True, False])
def test_int8_graph_keeps_the_contract_and_takes_no_scale_from_the_batch(
    monkeypatch: pytest.MonkeyPatch, table: bool
) -> None:
    if not table:
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 0)
    content = int8_of(random_model("lstm", 5, 7, 2, True).step_module())
    graph = read_graph(content, "step.onnx")
    assert output_size_of("language", graph) == 17
    assert graph.input("state.c1") == TensorSpec("state.c1", "float32", (None, 5))
    operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert not {operator for operator in operators if "Dynamic" in operator}
    products = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == (4 if table else 5)  # layer 0's two or one, layer 1's two, the projection
    constants = {tensor.name for tensor in onnx.load_from_string(content).graph.initializer}
    assert all(name in constants for node in products for name in node.input[1:])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_int8_rows_keep_to_themselves_in_batches_of_every_size(cell: str) -> None:
    model = random_model(cell, 19, 37, 2, False, vocabulary=131)
    parity = measure_parity(model, int8_of(model.step_module()), "int8", steps=32)
    assert parity.row_independent
    assert 1e-4 < parity.max_abs_error < 2  # rounded, and still the model


def test_int8_graph_that_says_no_number_is_refused() -> None:
    model = random_model("gru", 6, 8, 1, False)
    broken = random_model("gru", 6, 8, 1, False)
    broken.projection.bias.data[3] = torch.nan
    with pytest.raises(ParityError, match="an entry is off by nan"):
        measure_parity(model, int8_of(broken.step_module()), "int8", steps=4)


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 1), ("gru", 2)])
def test_int8_tracing_step_is_near_the_model(cell: str, layers: int) -> None:
    config = TracingModelConfig(skill_count=5, cell=cell, embedding_size=6, hidden_size=7, layers=layers)
    model = TracingModel(config).eval()
    graph = int8_of(model.step_module())
    assert output_size_of("tracing", read_graph(graph, "step.onnx")) == 5
    parity = measure_parity(model, graph, "int8", steps=40)
    assert 0 < parity.max_abs_error < 0.01


def test_int8_of_a_cell_that_no_pass_was_written_for_is_near_the_model() -> None:
    model = random_model("elman", 5, 7, 2, False)
    parity = measure_parity(model, int8_of(model.step_module()), "int8", steps=40)
    assert 1e-4 < parity.max_abs_error < 2
