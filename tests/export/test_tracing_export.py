"""Tracing models through the export room: the contract's graph, equal to the torch model over a long run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from carousel.export.checks.parity import ParityError, measure_parity
from carousel.export.onnx_graph import export_step
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import CheckpointError
from carousel.models.graph import TensorSpec, read_graph
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from tests.manifests import output_size_of
from tests.trained import load_tracing_model


def random_model(cell: str, *, skills: int, embedding: int, hidden: int, layers: int) -> TracingModel:
    config = TracingModelConfig(
        skill_count=skills, cell=cell, embedding_size=embedding, hidden_size=hidden, layers=layers
    )
    model = TracingModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=hidden**-0.5, generator=generator)
    return model


@pytest.mark.parametrize(
    ("cell", "skills", "embedding", "hidden", "layers"),
    [("lstm", 5, 6, 7, 1), ("gru", 11, 3, 9, 1), ("lstm", 4, 19, 33, 2), ("gru", 23, 8, 21, 2)],
)
def test_exported_tracing_graph_is_the_model_over_a_long_run(
    cell: str, skills: int, embedding: int, hidden: int, layers: int
) -> None:
    model = random_model(cell, skills=skills, embedding=embedding, hidden=hidden, layers=layers)
    parity = measure_parity(model, export_step(model.step_module()))
    assert (parity.steps, parity.rows, parity.row_independent) == (512, 4, True)
    assert 0 < parity.max_abs_error < 1e-5


@pytest.fixture(scope="module")
def model() -> TracingModel:
    return random_model("lstm", skills=5, embedding=6, hidden=7, layers=1)


@pytest.fixture(scope="module")
def graph(model: TracingModel) -> bytes:
    return export_step(model.step_module())


def test_exported_tracing_graph_keeps_the_contract(graph: bytes) -> None:
    spec = read_graph(graph, "step.onnx")
    assert output_size_of("tracing", spec) == 5
    assert spec.inputs == (
        TensorSpec("skill", "int64", (None,)),
        TensorSpec("correct", "int64", (None,)),
        TensorSpec("state.h0", "float32", (None, 7)),
        TensorSpec("state.c0", "float32", (None, 7)),
    )
    assert [output.name for output in spec.outputs] == ["probability", "next_state.h0", "next_state.c0"]


def test_measure_parity_refuses_skill_and_correct_swapped(model: TracingModel, graph: bytes) -> None:
    proto = onnx.load_from_string(graph)
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = {"skill": "correct", "correct": "skill"}.get(name, name)
    with pytest.raises(
        ParityError, match=r"^probability of the exported graph: an entry is off by .* allowed is 0\.00"
    ):
        measure_parity(model, proto.SerializeToString(), steps=64)


def test_measure_parity_refuses_a_probability_off_by_little(model: TracingModel, graph: bytes) -> None:
    proto = onnx.load_from_string(graph)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "projection.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(2e-3), bias.name))
    with pytest.raises(ParityError, match=r"an entry is off by 0\.000"):
        measure_parity(model, proto.SerializeToString(), steps=64)


def test_exported_tracing_bundle_predicts_what_the_checkpoint_does(
    tiny_tracing_bundle: Path, make_tracing_checkpoint, tmp_path: Path
) -> None:
    model, _ = load_tracing_model(read_checkpoint(make_tracing_checkpoint(tmp_path / "best.safetensors")))
    bundle = open_bundle(tiny_tracing_bundle)
    codec = bundle.codec(InteractionCodec)
    history = [("area", True), ("counting", False), (2, True), ("area", False)]
    ids = [codec.encode(skill, correct) for skill, correct in history]
    with torch.inference_mode():
        expected = torch.sigmoid(model(torch.tensor([ids]), model.initial_state(1))[0])[0].numpy()  # [T, S]
    session = onnxruntime.InferenceSession(bundle.files["step.onnx"], providers=["CPUExecutionProvider"])
    state = {spec.name: np.zeros((1, 7), np.float32) for spec in bundle.states}
    for position, id_ in enumerate(ids):
        skill, correct = codec.decode(id_)
        fed = {"skill": np.array([skill]), "correct": np.array([int(correct)]), **state}
        probability, *after = session.run(["probability", "next_state.h0", "next_state.c0"], fed)
        state = dict(zip(["state.h0", "state.c0"], after, strict=True))
        np.testing.assert_allclose(probability[0], expected[position], atol=1e-6)


def test_exported_tracing_bundle_keeps_what_training_said(tiny_tracing_bundle: Path) -> None:
    manifest = open_bundle(tiny_tracing_bundle).manifest
    assert (manifest.task, manifest.codecs["skills"].kind) == ("tracing", "interaction")
    assert manifest.figures.served == {"attempts": 11, "auc": 0.75, "accuracy": 0.7, "log_loss": 0.6}
    assert manifest.provenance.cell == "lstm"
    assert sorted(path.name for path in tiny_tracing_bundle.iterdir()) == ["manifest.json", "skills.json", "step.onnx"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": '["a", "b"]'}, r"whole tracing model: 2 skills; .*float32\[batch, 5\]"),
        ({"validation": {"attempts": 3}}, r"header validation\.auc: Field required$"),
    ],
)
def test_export_refuses_a_tracing_checkpoint_whose_header_is_wrong(
    make_tracing_checkpoint, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    read = read_checkpoint(make_tracing_checkpoint(tmp_path / "best.safetensors"))
    write_checkpoint(tmp_path / "wrong.safetensors", Checkpoint(read.tensors, {**read.header, **change}))
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(tmp_path / "wrong.safetensors", tmp_path / "r", "m")
    assert not (tmp_path / "r").exists()
