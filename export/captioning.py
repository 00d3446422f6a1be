"""From a captioning model to its two proven graphs."""

from __future__ import annotations

from pathlib import Path

from export.captioning_module import CaptioningStep
from export.captioning_parity import measure_captioning_parity
from export.encoder_graph import export_encoder
from export.extractor import Extractor, ExtractorError, reopen_extractor
from export.onnx_graph import export_step
from models.bundle import ENCODER_GRAPH, STEP_GRAPH
from models.codec.image import Preprocessing
from models.features import FrozenEncoder
from models.manifest import Parity, Precision
from models.nn.captioning import CaptioningModel


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
    model: CaptioningModel, preprocessing: Preprocessing, extractor: Extractor | None, int8_step: bytes | None = None
) -> tuple[dict[str, bytes], Parity]:
    """The ONNX files by name, and how near they are to the model.

    Args:
        model: in evaluation mode.
        preprocessing: of its images.
        extractor: the frozen encoder in front of it.
        int8_step: its step graph, if that is not to be the fp32 one; the encoder graph is always fp32.

    Raises:
        ParityError: they are not the model.
    """
    step = int8_step or export_step(CaptioningStep(model))
    encoder = export_encoder(model, preprocessing, extractor)
    precision: Precision = "int8" if int8_step else "fp32"
    parity = measure_captioning_parity(model, step, encoder, preprocessing, extractor, precision)
    return {STEP_GRAPH: step, ENCODER_GRAPH: encoder}, parity
