"""The encoder graph of a captioning model's own network, its convolutions in int8.

The fp32 graph is taken and onnxruntime's static quantiser spells its convolutions `QuantizeLinear` ...
`DequantizeLinear`, which the runtime fuses into int8 kernels. Their scales are fixed in the graph, from the ranges met
on validation images, so an image's bits do not depend on its batch. Weights have a scale per channel and seven bits
(passes/rounding.py says why).

What is between the convolutions stays fp32: normalisation is of an image's own groups of channels, so nothing of it can
be folded into the weights. So does the first convolution: the int8 kernel takes twice as long over three colours.

Axes: N images, H and W an image's height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from carousel.export.passes.products import Floats
from carousel.models.step import IMAGE

CALIBRATION_IMAGES = 32
"""So many of the validation images. All 500 of scenes were no better: a wider range is a coarser grid."""

PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Without this mark the quantiser logs that it would rather have its own simplifier run first."""


def round_convolutions(encoder: bytes, images: Floats) -> bytes:
    """The int8 ONNX model; inputs and outputs are those of the fp32 graph.

    Args:
        encoder: the fp32 graph, from pixels on.
        images: preprocessed; the first CALIBRATION_IMAGES are looked at. <float32>[N, 3, H, W]
    """
    model = onnx.load_from_string(encoder)
    onnx.helper.set_model_props(model, PREPARED)
    first = [node.name for node in model.graph.node if IMAGE in node.input]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "encoder.onnx"  # the quantiser writes files only
        quantize_static(
            model,
            path,
            _Images(images[:CALIBRATION_IMAGES]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=first,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        rounded = onnx.load(path)
    rounded.producer_name = "carousel"
    for field in ("producer_version", "metadata_props"):
        rounded.ClearField(field)
    rounded.graph.ClearField("value_info")
    onnx.checker.check_model(rounded, full_check=True)
    return bytes(rounded.SerializeToString(deterministic=True))


class _Images:
    """One image after another, as the quantiser asks for them: a CalibrationDataReader is whatever has `get_next`."""

    def __init__(self, images: Floats) -> None:
        self._feeds: Iterator[dict[str, Floats]] = ({IMAGE: image[None]} for image in images)

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)
