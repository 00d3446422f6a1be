"""Weights that graphs share: once in a file, and the graphs say what they said."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.export.shared_weights import ALIGNMENT, MIN_BYTES, share_weights
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.weights import WEIGHTS


def int8_of(step):
    return int8_step(export_step(step))[0]


@pytest.fixture(scope="module", params=["lstm", "gru"])
def graphs(request) -> dict[str, bytes]:
    torch.manual_seed(0)
    model = LanguageModel(
        LanguageModelConfig(vocabulary_size=301, cell=request.param, embedding_size=96, hidden_size=80, layers=2)
    ).eval()
    step = model.step_module()
    graph = int8_of(step)
    lower, upper = prefill_graphs(graph)
    return {"step.onnx": graph, "prefill.onnx": lower, "prefill2.onnx": upper}


def initializers(content: bytes) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(content).graph.initializer}


def test_what_two_graphs_hold_lies_in_the_file_once(graphs: dict[str, bytes]) -> None:
    files = share_weights(graphs)
    assert files.keys() == graphs.keys() | {WEIGHTS}
    step, lower, upper = (initializers(files[name]) for name in graphs)
    inside = {name for name, tensor in step.items() if tensor.data_location != TensorProto.EXTERNAL}
    large = {name for name, tensor in initializers(graphs["step.onnx"]).items() if len(tensor.raw_data) >= MIN_BYTES}
    layers = {name for name in large if name.startswith("stack.layers.") and name.endswith(".int8")}
    assert len(layers) == 3
    assert large - inside == {"token.table", *layers}
    assert "projection.weight.columns.int8" in inside  # which prefill does without
    for name in large - inside:
        for other in (lower, upper):
            assert name not in other or other[name].external_data == step[name].external_data
        place = {entry.key: entry.value for entry in step[name].external_data}
        offset, length = int(place["offset"]), int(place["length"])
        assert offset % ALIGNMENT == 0
        assert files[WEIGHTS][offset : offset + length] == initializers(graphs["step.onnx"])[name].raw_data
    saved = sum(map(len, graphs.values())) - sum(map(len, files.values()))
    assert saved > 0.9 * sum(len(initializers(graphs["step.onnx"])[name].raw_data) for name in large - inside)
    assert share_weights(graphs) == files


def test_any_reader_of_onnx_finds_them(graphs: dict[str, bytes], tmp_path) -> None:
    for name, content in share_weights(graphs).items():
        (tmp_path / name).write_bytes(content)
    for name, content in graphs.items():
        onnx.checker.check_model(str(tmp_path / name))
        model = onnx.load(str(tmp_path / name))
        whole = onnx.load_from_string(content)
        for tensor, original in zip(model.graph.initializer, whole.graph.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(original))
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    fed = {spec.name: np.ones((3, 80), np.float32) for spec in session.get_inputs()} | {"token": np.arange(3)}
    alone = onnxruntime.InferenceSession(graphs["step.onnx"]).run(None, fed)
    assert [part.tobytes() for part in session.run(None, fed)] == [part.tobytes() for part in alone]


def test_graphs_that_share_nothing_stay_as_they_are(graphs: dict[str, bytes]) -> None:
    for alone in (
        {"step.onnx": graphs["step.onnx"]},
        {name: graphs[name] for name in ("prefill.onnx", "prefill2.onnx")},
    ):
        assert share_weights(alone) == alone


def test_what_only_looks_alike_is_not_shared() -> None:
    def graph(values: np.ndarray) -> bytes:
        inner = onnx.GraphProto(name="g", initializer=[numpy_helper.from_array(values, "w")])
        return onnx.ModelProto(graph=inner).SerializeToString()

    values = np.arange(MIN_BYTES, dtype=np.int8)
    others = (values + 1, values.reshape(2, -1), values.view(np.uint8), values[: MIN_BYTES // 2])
    for other in others:
        alone = {"a.onnx": graph(values), "b.onnx": graph(other)}
        assert share_weights(alone) == alone
    assert WEIGHTS in share_weights({"a.onnx": graph(values), "b.onnx": graph(values.copy())})
