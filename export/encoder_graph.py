"""The encoder graph: an image in, a caption's first states and its context out."""

from __future__ import annotations

import onnx
import torch

from carousel.export.captioning_module import EncoderModule
from carousel.export.extractor import Extractor
from carousel.export.onnx_graph import export_module
from carousel.models.codec.image import Preprocessing
from carousel.models.features import FEATURES
from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.step import IMAGE


def export_encoder(model: CaptioningModel, preprocessing: Preprocessing, extractor: Extractor | None) -> bytes:
    """The ONNX model from `image` to `state.<name>` and `context.<name>`.

    Args:
        model: in evaluation mode.
        preprocessing: of its images.
        extractor: the frozen encoder whose features it takes, which becomes the graph's first part with its weights
            stored as they were; None where the model has an encoder of its own.
    """
    states = [STATE_PREFIX + name for name in model.stack.state_shapes]
    example = torch.zeros(2, *(preprocessing.shape if extractor is None else extractor.shape))  # rows of one fix axis 0
    with torch.inference_mode():
        _, context = EncoderModule(model)(example)
    outputs = [*states, *(CONTEXT_PREFIX + name for name in context)]
    head = export_module(EncoderModule(model), (example,), {}, [IMAGE if extractor is None else FEATURES], outputs)
    graph = head if extractor is None else _joined(extractor.model, head)
    onnx.checker.check_model(graph, full_check=True)
    return bytes(graph.SerializeToString(deterministic=True))


def _joined(extractor: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    first = onnx.ModelProto()
    first.CopyFrom(extractor)
    first.ir_version = head.ir_version
    graph = onnx.compose.merge_models(first, head, io_map=[(FEATURES, FEATURES)])
    graph.graph.name = "encoder"
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer):
        part.ClearField("doc_string")
    for field in ("producer_name", "producer_version", "metadata_props"):
        graph.ClearField(field)
    return graph
