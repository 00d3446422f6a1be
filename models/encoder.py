"""What an encoder graph must look like: context in, a sequence's first states and its memories out."""

from __future__ import annotations

from carousel.models.errors import GraphRejected
from carousel.models.graph import GraphSpec, TensorSpec

ENCODER_GRAPH = "encoder.onnx"
IMAGE = "image"


def check_encoder(graph: GraphSpec, step: GraphSpec, image_shape: tuple[int, int, int]) -> None:
    """Hold a captioning bundle's encoder graph against its step graph.

    `image` float32[batch, 3, H, W] (or [batch, H, W, 3]) in; out, under the step graph's own input names, every
    `state.<name>` and every `memory.<name>` that a step reads, of its type and shape.

    Args:
        graph: the encoder.
        step: the step graph, which check_step has passed.
        image_shape: of a preprocessed image, from the manifest.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    allowed = TensorSpec(IMAGE, "float32", (None, *image_shape))
    for spec in graph.inputs:
        if spec.name != IMAGE:
            raise GraphRejected(f"{ENCODER_GRAPH}: input {spec}; allowed is {allowed} alone")
    _require(graph.input(IMAGE), "input", allowed)
    for needed in (*step.states, *step.memories):
        _require(graph.output(needed.name), "output", needed)


def _require(seen: TensorSpec | None, side: str, allowed: TensorSpec) -> None:
    if seen is None or (seen.dtype, seen.shape) != (allowed.dtype, allowed.shape):
        raise GraphRejected(f"{ENCODER_GRAPH}: {side} {allowed.name} is {seen or 'missing'}; allowed is {allowed}")
