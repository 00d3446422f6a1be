from pathlib import Path

import onnx
import pytest
import torch

from carousel.export.onnx_graph import export_step
from carousel.models.graph import TensorSpec, read_graph
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from tests.manifests import output_size_of


@pytest.fixture(scope="module")
def content() -> bytes:
    torch.manual_seed(0)
    config = LanguageModelConfig(vocabulary_size=11, cell="lstm", embedding_size=5, hidden_size=7, layers=2, tied=True)
    return export_step(LanguageModel(config).step_module())


def test_exported_graph_keeps_the_contract(content: bytes) -> None:
    graph = read_graph(content, "step.onnx")
    assert output_size_of("language", graph) == 11
    assert graph.inputs == (
        TensorSpec("token", "int64", (None,)),
        TensorSpec("state.h0", "float32", (None, 7)),
        TensorSpec("state.c0", "float32", (None, 7)),
        TensorSpec("state.h1", "float32", (None, 5)),
        TensorSpec("state.c1", "float32", (None, 5)),
    )
    assert [spec.name for spec in graph.outputs] == [
        "logits", "next_state.h0", "next_state.c0", "next_state.h1", "next_state.c1",
    ]  # fmt: skip


def test_exported_graph_is_the_few_nodes_of_the_cells(content: bytes) -> None:
    nodes = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert sorted(set(nodes)) == ["Add", "Concat", "Gather", "Gemm", "Mul", "Sigmoid", "Split", "Tanh"]
    assert nodes.count("Gemm") == 3  # one product a layer, one for the logits
    assert len(nodes) == 1 + 2 * 12 + 1


def test_exported_graph_holds_tied_weights_once(content: bytes) -> None:
    sizes = [list(tensor.dims) for tensor in onnx.load_from_string(content).graph.initializer]
    assert sizes.count([11, 5]) == 1


def test_exported_graph_tells_nothing_of_the_machine_that_made_it(content: bytes) -> None:
    assert b"site-packages" not in content
    assert b".py" not in content
    assert str(Path.home()).encode() not in content


def test_export_step_of_the_same_weights_gives_the_same_bytes(content: bytes) -> None:
    torch.manual_seed(0)
    config = LanguageModelConfig(vocabulary_size=11, cell="lstm", embedding_size=5, hidden_size=7, layers=2, tied=True)
    assert export_step(LanguageModel(config).step_module()) == content
