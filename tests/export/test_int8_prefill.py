"""The int8 prefill graph against the int8 step graph: the same bits, however a prompt is cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from carousel.export import making, shared_weights
from carousel.export.__main__ import main
from carousel.export.checks.parity import ParityError
from carousel.export.checks.prefill import require_same_states
from carousel.export.onnx_graph import export_step
from carousel.export.passes import tables
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.models.bundle import open_bundle
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from carousel.models.nn.validation import VALIDATION, ValidationData, write_validation
from carousel.models.weights import WEIGHTS
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.served.opening import open_core
from tests.manifests import check_prefill_of

SIZES = [
    ("lstm", 7, 9, 1, False),
    ("lstm", 5, 11, 2, True),
    ("lstm", 3, 71, 1, False),  # a row of the table is longer than a block
    ("gru", 6, 8, 2, False),
    ("gru", 9, 4, 3, True),
]


def int8_of(step):
    return int8_step(export_step(step))[0]


def random_step(cell, embedding, hidden, layers, tied):
    model = LanguageModel(
        LanguageModelConfig(
            vocabulary_size=17, cell=cell, embedding_size=embedding, hidden_size=hidden, layers=layers, tied=tied
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.4, generator=generator)
    return model.step_module()


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("cell", "embedding", "hidden", "layers", "tied"), SIZES)
def test_prefill_leaves_what_steps_leave(monkeypatch, cell, embedding, hidden, layers, tied, table):
    if not table:
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 0)
    step = random_step(cell, embedding, hidden, layers, tied)
    graph = int8_of(step)
    prefill = prefill_graphs(graph)
    check_prefill_of("language", graph, prefill)
    require_same_states(step, graph, prefill)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_prefill_of_a_history_leaves_what_steps_leave(cell):
    config = TracingModelConfig(skill_count=5, cell=cell, embedding_size=6, hidden_size=37, layers=2)
    step = TracingModel(config).eval().step_module()
    graph = int8_of(step)
    prefill = prefill_graphs(graph)
    check_prefill_of("tracing", graph, prefill)
    require_same_states(step, graph, prefill)


def test_prefill_holds_each_layer_once_and_no_projection():
    step = random_step("lstm", 7, 9, 2, False)
    lower, upper = [
        {tensor.name for tensor in onnx.load_from_string(part).graph.initializer}
        for part in prefill_graphs(int8_of(step))
    ]
    assert {"token.table", "stack.layers.0.weight.columns.1.int8"} < lower
    assert {"stack.layers.1.weight.columns.0.int8", "stack.layers.1.weight.columns.1.int8"} < upper
    assert not any(name.startswith("projection") for name in lower | upper)


@pytest.mark.parametrize("layer", [0, 1])
def test_prefill_of_other_weights_is_refused(layer):
    step, other = random_step("lstm", 5, 11, 2, True), random_step("lstm", 5, 11, 2, True)
    name = f"layers.{layer}.weight"
    weight = dict(other.stack.named_parameters())[name].data
    weight[3, -1] *= 1.5  # of the hidden product of one unit's gate
    with pytest.raises(ParityError, match=r"state\.[hc]\d after 131 ids of the prefill graphs is not what the step"):
        require_same_states(step, int8_of(step), prefill_graphs(int8_of(other)))


@pytest.fixture
def run_directory(make_tracing_checkpoint, tmp_path):
    """A run whose checkpoint records no figures, with validation data beside it."""
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    read = read_checkpoint(make_tracing_checkpoint(path))
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, "validation": None}))
    histories = [
        torch.randint(0, 10, (length,), generator=torch.Generator().manual_seed(length)) for length in (40, 60)
    ]
    write_validation(path.parent / VALIDATION, ValidationData("tracing", "0" * 64, histories, 0))
    return path.parent


def test_int8_export_brings_a_prefill_graph(run_directory, tmp_path, capsys):
    options = ["--repository", str(tmp_path), "--name", "m", "--precision", "int8", "--max-worsening", "1"]
    assert main([str(run_directory), *options]) == 0
    assert "prefill    leaves the step's states, bit for bit, in chunks of 1 to 131\n" in capsys.readouterr().out
    assert open_bundle(tmp_path / "m" / "1").prefill


def test_int8_export_writes_what_graphs_share_once_and_it_is_served(run_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shared_weights, "MIN_BYTES", 64)
    options = ["--repository", str(tmp_path), "--name", "m", "--precision", "int8", "--max-worsening", "1"]
    assert main([str(run_directory), *options]) == 0
    assert "and weights.bin of " in capsys.readouterr().out
    bundle = open_bundle(tmp_path / "m" / "1")
    assert bundle.manifest.weights == WEIGHTS
    names = [{weight.name for weight in graph.weights} for graph in (bundle.step, *bundle.prefill)]
    assert "add_2.table" in names[0] & names[1]
    assert names[0] == set.union(*names[1:])
    core = open_core(bundle, 1, 4)
    core.add(0, Request(np.arange(7) % bundle.output_size, SamplingParameters(5, seed=1)))
    while not core.idle:
        core.step()


def test_prefill_that_differs_is_left_out_and_named(run_directory, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise ParityError("state.h0 differs")

    monkeypatch.setattr(making, "require_same_states", refuse)
    options = ["--repository", str(tmp_path), "--name", "m", "--precision", "int8", "--max-worsening", "1"]
    assert main([str(run_directory), *options]) == 0
    assert "prefill    left out: state.h0 differs\n" in capsys.readouterr().out
    assert not open_bundle(tmp_path / "m" / "1").prefill
