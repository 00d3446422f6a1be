"""The encoder graph in int8: near the model, each image by itself, the same bytes from the same images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from carousel.export.captioning import int8_captioning_graphs
from carousel.export.checks.parity import require_row_independence
from carousel.export.encoder_graph import export_encoder
from carousel.export.forward import GraphCaptioner
from carousel.export.onnx_graph import export_step
from carousel.export.passes.convolutions import CALIBRATION_IMAGES, round_convolutions
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH
from carousel.models.codec.image import Preprocessing
from carousel.models.graph import read_graph
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig
from carousel.models.nn.validation import CaptioningValidationData

PREPROCESSING = Preprocessing(width=23, height=17)
CHANNELS = (6, 16, 24)


def model_of(cell: str, attention: str, channels: tuple[int, ...] = CHANNELS) -> CaptioningModel:
    sizes = {"embedding_size": 5, "hidden_size": 11, "value_size": 7, "key_size": 9}
    config = CaptioningModelConfig(
        vocabulary_size=13,
        rows=3,
        columns=3,
        feature_size=24,
        cell=cell,
        attention=attention,
        channels=channels,
        **sizes,
    )
    model = CaptioningModel(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if "norm.weight" in name else 0.0, 0.3, generator=generator)
    return model


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 1, (CALIBRATION_IMAGES + 8, *PREPROCESSING.shape)).astype(np.float32)


@pytest.mark.parametrize(("cell", "attention"), [("lstm", "soft"), ("gru", "none")])
def test_int8_encoder_is_near_the_model_and_keeps_the_contract(cell: str, attention: str, images: np.ndarray) -> None:
    model = model_of(cell, attention)
    fp32 = export_encoder(model, PREPROCESSING, None)
    content = round_convolutions(fp32, images)
    graph, other = read_graph(content, ENCODER_GRAPH), read_graph(fp32, ENCODER_GRAPH)
    assert [(spec.name, spec.shape) for spec in graph.inputs] == [(spec.name, spec.shape) for spec in other.inputs]
    assert [(spec.name, spec.shape) for spec in graph.outputs] == [(spec.name, spec.shape) for spec in other.outputs]

    fed = torch.from_numpy(images[CALIBRATION_IMAGES:])
    with torch.inference_mode():
        state, context = model.encode(fed)
    rounded = GraphCaptioner(model, export_step(model.step_module()), content).encode(fed)
    for said, truth in ((rounded[0], state), (rounded[1], context)):
        assert said.keys() == truth.keys()
        for name, part in truth.items():
            assert 0 < (said[name] - part).std() < 0.1 * part.std()


def test_int8_encoder_rounds_every_convolution_but_the_first(images: np.ndarray) -> None:
    model = model_of("lstm", "soft")
    proto = onnx.load_from_string(round_convolutions(export_encoder(model, PREPROCESSING, None), images))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    made_by = {name: node for node in proto.graph.node for name in node.output}
    (first,) = [node for node in convolutions if "image" in node.input]
    assert stored[first.input[1]].dtype == np.float32
    assert len(convolutions) == 1 + len([name for name in model.network.blocks.state_dict() if name.count("norm") == 0])
    for node in convolutions:
        if node is not first:
            weight, scales, _ = (stored[name] for name in made_by[node.input[1]].input)
            assert weight.dtype == np.int8
            assert np.abs(weight.astype(int)).max() <= 64  # two products of it and a byte fit into 16 bits
            assert scales.shape == weight.shape[:1]
    assert not [node for node in proto.graph.node if "Dynamic" in node.op_type]
    assert not proto.metadata_props


def test_int8_encoder_images_keep_to_themselves(images: np.ndarray) -> None:
    graph = round_convolutions(export_encoder(model_of("lstm", "soft"), PREPROCESSING, None), images)
    require_row_independence(graph, {}, {"image": images[:16]}, sizes=(1, 2, 3, 7, 16))


def test_int8_encoder_depends_on_the_calibration_images_alone(images: np.ndarray) -> None:
    fp32 = export_encoder(model_of("gru", "soft"), PREPROCESSING, None)
    graph = round_convolutions(fp32, images)
    assert round_convolutions(fp32, images[:CALIBRATION_IMAGES]) == graph
    assert round_convolutions(fp32, 2 * images) != graph


@pytest.mark.parametrize(("channels", "files"), [(CHANNELS, {STEP_GRAPH, ENCODER_GRAPH}), ((), {STEP_GRAPH})])
def test_int8_encoder_is_of_the_models_own_network_alone(channels, files: set[str], images: np.ndarray) -> None:
    model = model_of("lstm", "soft", channels)
    seen = torch.from_numpy(images) if channels else torch.randn(40, 9, 24)
    ids = torch.tensor([1, 4, 5]).expand(40, 1, 3)
    data = CaptioningValidationData("0" * 64, seen, ids, ids.roll(-1, 2), [["dog"]] * 40)
    assert int8_captioning_graphs(model, PREPROCESSING, data)[0].keys() == files
