"""From a captioning model to its two proven graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
from typing_extensions import override  # of Python 3.12

from carousel.export.checks.captioning import measure_captioning_parity
from carousel.export.encoder_graph import export_encoder
from carousel.export.extractor import ExtractorError, reopen_extractor
from carousel.export.making import Graphs, Making
from carousel.export.measure import Data
from carousel.export.measures.captioning import measured_on_captions
from carousel.export.onnx_graph import export_step
from carousel.export.passes.bounds import Interval, bounds
from carousel.export.passes.convolutions import round_convolutions
from carousel.export.passes.graph import Graph
from carousel.export.passes.recipe import int8_step
from carousel.export.progress import Progress
from carousel.models.codec.image import ImageCodec, Preprocessing
from carousel.models.graph import STATE_PREFIX
from carousel.models.manifest import Parity, Precision
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import CaptioningValidationData
from carousel.models.step import ENCODER_GRAPH, STEP_GRAPH


class EncoderMaking(Making):
    """Of a network whose sequences begin with what it makes of an image."""

    @override
    def __init__(self, path: Path, trained: Trained, encoder: Path | None) -> None:
        assert isinstance(trained.network, CaptioningModel)
        self._model = trained.network
        self._preprocessing = trained.codec(ImageCodec).preprocessing
        if trained.encoder is None and encoder is not None:
            raise ExtractorError(f"{path}: the model has an encoder of its own; leave out --encoder")
        if trained.encoder is not None and encoder is None:
            raise ExtractorError(
                f"{path}: was trained on features of an ONNX file (sha256 {trained.encoder.sha256[:12]}...); "
                "name that file with --encoder"
            )
        self._extractor = reopen_extractor(encoder, trained.encoder) if encoder and trained.encoder else None

    @override
    def int8(self, data: Data) -> Graphs:
        """See Making."""
        assert isinstance(data, CaptioningValidationData)
        graphs, self.in_fp32 = int8_captioning_graphs(self._model, self._preprocessing, data)
        return graphs

    @override
    def proven(self, int8: Graphs | None, progress: Progress) -> tuple[Graphs, Parity]:
        """See Making."""
        model, int8 = self._model, int8 or {}
        step = int8.get(STEP_GRAPH) or export_step(model.step_module())
        encoder = int8.get(ENCODER_GRAPH) or export_encoder(model, self._preprocessing, self._extractor)
        precisions: dict[str, Precision] = dict.fromkeys(int8, "int8")
        parity = measure_captioning_parity(model, step, encoder, self._preprocessing, self._extractor, precisions)
        return {STEP_GRAPH: step, ENCODER_GRAPH: encoder}, parity


def int8_captioning_graphs(
    model: CaptioningModel, preprocessing: Preprocessing, data: CaptioningValidationData
) -> tuple[dict[str, bytes], list[str]]:
    """What of a captioning model is put into int8, by name: its step, and the encoder where that is its own network.

    A frozen extractor stays fp32: the validation data hold its features and not the images, on which its ranges would
    have to be measured.

    Args:
        model: in evaluation mode.
        preprocessing: of its images.
        data: what ranges are measured on.

    Returns:
        The graphs, and a sentence for each product of the step that is still in fp32.

    Raises:
        NoBound: a product reads what is no number on the data.
    """
    encoder = export_encoder(model, preprocessing, None) if model.network is not None else b""
    squashed = {STATE_PREFIX + name: Interval(-1.0, 1.0) for name in model.stack.state_shapes}  # see EncoderModule
    known = initial_states(encoder) if encoder else squashed
    step, left = int8_step(export_step(model.step_module()), known, measured_on_captions(model, data))
    graphs = {STEP_GRAPH: step}
    if encoder:
        graphs[ENCODER_GRAPH] = round_convolutions(encoder, data.images.numpy())
    return graphs, left


def initial_states(encoder: bytes) -> dict[str, Interval]:
    """Where the states lie that an encoder graph says a sequence begins with."""
    graph = Graph(onnx.load_from_string(encoder))
    found = bounds(graph)
    return {name: found[name] for name in graph.outputs if name.startswith(STATE_PREFIX)}
