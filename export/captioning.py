"""From a captioning model to its two proven graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from carousel.export.checks.captioning import measure_captioning_parity
from carousel.export.encoder_graph import export_encoder
from carousel.export.extractor import Extractor, ExtractorError, reopen_extractor
from carousel.export.measures.captioning import measured_on_captions
from carousel.export.onnx_graph import export_step
from carousel.export.passes.bounds import Interval, bounds
from carousel.export.passes.convolutions import round_convolutions
from carousel.export.passes.graph import Graph
from carousel.export.passes.recipe import int8_step
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH
from carousel.models.codec.image import Preprocessing
from carousel.models.features import FrozenEncoder
from carousel.models.graph import STATE_PREFIX
from carousel.models.manifest import Parity, Precision
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.validation import CaptioningValidationData


def extractor_of(checkpoint: Path, trained_on: FrozenEncoder | None, given: Path | None) -> Extractor | None:
    """The frozen encoder of a checkpoint, from the file that the caller gives; None where the model has its own.

    Raises:
        ExtractorError: there is a file and should be none, there is none and should be one, or it is another one.
    """
    if trained_on is None:
        if given is not None:
            raise ExtractorError(f"{checkpoint}: the model has an encoder of its own; leave out --encoder")
        return None
    if given is None:
        raise ExtractorError(
            f"{checkpoint}: was trained on features of an ONNX file (sha256 {trained_on.sha256[:12]}...); "
            "name that file with --encoder"
        )
    return reopen_extractor(given, trained_on)


def captioning_graphs(
    model: CaptioningModel,
    preprocessing: Preprocessing,
    extractor: Extractor | None,
    int8: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, bytes], Parity]:
    """The ONNX files by name, and how near they are to the model.

    Args:
        model: in evaluation mode.
        preprocessing: of its images.
        extractor: the frozen encoder in front of it.
        int8: what there is of them in int8, by name, and stands in the place of the fp32 ones.

    Raises:
        ParityError: they are not the model.
    """
    int8 = int8 or {}
    step = int8.get(STEP_GRAPH) or export_step(model.step_module())
    encoder = int8.get(ENCODER_GRAPH) or export_encoder(model, preprocessing, extractor)
    precisions: dict[str, Precision] = dict.fromkeys(int8, "int8")
    parity = measure_captioning_parity(model, step, encoder, preprocessing, extractor, precisions)
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
