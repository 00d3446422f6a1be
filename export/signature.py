"""What a manifest declares of the graphs of a network that Carousel trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX, next_name
from carousel.models.manifest import EncoderSpec, StateSpec, StepSpec
from carousel.models.nn.network import StepModule
from carousel.models.step import ATTENTION, ENCODER_GRAPH, IMAGE, STEP_GRAPH, prefill_name


def declared(graphs: Mapping[str, bytes], step: StepModule) -> dict[str, Any]:
    """The fields of a Manifest that say what the graphs are.

    Args:
        graphs: by file.
        step: what the graph of a step was made from.
    """
    graph = onnx.load_model_from_string(graphs[STEP_GRAPH]).graph
    names = [value.name for value in graph.input]
    states = [name for name in names if name.startswith(STATE_PREFIX)]
    context = [name for name in names if name.startswith(CONTEXT_PREFIX)]
    encoder = ENCODER_GRAPH in graphs
    told: dict[str, Any] = {
        "step": StepSpec(
            inputs=tuple(step.inputs),
            outputs=(step.output, ATTENTION) if step.grid else (step.output,),
            states=tuple(
                StateSpec(
                    before=name,
                    after=next_name(name),
                    initial="encoder" if encoder else "zeros",
                )
                for name in states
            ),
            context=tuple(context),
        ),
        "prefill": tuple(name for place in range(len(graphs)) if (name := prefill_name(place)) in graphs),
    }
    if encoder:
        told["encoder"] = EncoderSpec(inputs=(IMAGE,), gives=(*states, *context))
    return told
