"""What a manifest declares of the networks that Carousel trains: ports, states, codecs and a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.image import ImageCodecSpec
from carousel.models.codec.interaction import InteractionCodec, InteractionCodecSpec
from carousel.models.codec.text import TextCodec, TextCodecSpec
from carousel.models.graph import CONTEXT_PREFIX, NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.models.head import GenerateHead, ReadHead
from carousel.models.manifest import EncoderSpec, StateSpec, StepSpec
from carousel.models.step import (
    ATTENTION,
    ENCODER_GRAPH,
    IMAGE,
    STEP_GRAPH,
    STEP_INPUTS,
    STEP_OUTPUT,
    Task,
    prefill_name,
)

SKILLS, TOKENIZER = InteractionCodecSpec().file, TextCodecSpec().file


def declared(
    task: Task, graphs: Mapping[str, bytes], codec: TextCodec | InteractionCodec | CaptionCodec
) -> dict[str, Any]:
    """The fields of a Manifest that say what the graphs are.

    Args:
        task: of the network.
        graphs: by file.
        codec: of its messages.
    """
    step = onnx.load_model_from_string(graphs[STEP_GRAPH]).graph
    names = [value.name for value in step.input]
    states = [name for name in names if name.startswith(STATE_PREFIX)]
    context = [name for name in names if name.startswith(CONTEXT_PREFIX)]
    attends = ATTENTION if ATTENTION in {value.name for value in step.output} else None
    inputs, output = STEP_INPUTS[task], STEP_OUTPUT[task]
    encoder = ENCODER_GRAPH in graphs
    told: dict[str, Any] = {
        "step": StepSpec(
            inputs=inputs,
            outputs=(output,) if attends is None else (output, attends),
            states=tuple(
                StateSpec(
                    before=name,
                    after=NEXT_STATE_PREFIX + name.removeprefix(STATE_PREFIX),
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
    if isinstance(codec, CaptionCodec):
        told["ports"] = {IMAGE: "image", inputs[0]: "words", output: "words"}
        told["codecs"] = {"image": ImageCodecSpec(preprocessing=codec.preprocessing), "words": TextCodecSpec()}
        told["head"] = GenerateHead(feeds=inputs[0], from_=output, begin=codec.begin, end=codec.end, attends=attends)
    elif isinstance(codec, InteractionCodec):
        told["ports"] = dict.fromkeys((*inputs, output), "skills")
        told["codecs"] = {"skills": InteractionCodecSpec()}
        told["head"] = ReadHead(from_=output)
    else:
        told["ports"] = dict.fromkeys((*inputs, output), "text")
        told["codecs"] = {"text": TextCodecSpec()}
        told["head"] = GenerateHead(feeds=inputs[0], from_=output)
    return told
