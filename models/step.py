"""What export calls the files and ports of the networks that Carousel trains itself."""

from __future__ import annotations

STEP_GRAPH, ENCODER_GRAPH = "step.onnx", "encoder.onnx"

PREFILL_GRAPH = "prefill.onnx"
"""The one graph, or the first of several: prefill2.onnx goes on from what it hands up, and so forth."""

IMAGE = "image"
"""The input of an encoder."""

ATTENTION = "attention"
"""The output that says where a step looked: a captioning graph may have it."""


def prefill_name(place: int) -> str:
    """The file of the graph that is so many places above the lowest."""
    return PREFILL_GRAPH if place == 0 else f"prefill{place + 1}.onnx"
