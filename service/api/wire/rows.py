"""What a client sends in terms of a model's ports: the fields that routes share, and the frames of a raw stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from carousel.service.api.wire.messages import Cancel, MemoryFields, Message, UrgencyFields

MAX_PORTS = 64
MAX_STEPS = 1_000_000
PortName = Annotated[str, Field(max_length=200)]


class PortFields(Message):
    """What holds for all steps of a sequence."""

    context: Annotated[
        dict[PortName, Any],
        Field(max_length=MAX_PORTS, description="By port, the one row that every step reads; all that the model has."),
    ] = Field(default_factory=dict)
    outputs: Annotated[
        list[PortName] | None,
        Field(min_length=1, max_length=MAX_PORTS, description="Ports to tell; all where left out."),
    ] = None


class StepFields(Message):
    """Steps."""

    inputs: Annotated[
        dict[PortName, list[Any]],
        Field(
            max_length=MAX_PORTS,
            description="By port, a row for each step, oldest first: a number, or a list as deep as the port's row; "
            "of an encoder's port its whole input.",
        ),
    ] = Field(default_factory=dict)
    steps: Annotated[
        int | None,
        Field(ge=1, le=MAX_STEPS, description="How many; only for a model that has no inputs and goes on by itself."),
    ] = None


class RawStart(PortFields, MemoryFields, UrgencyFields):
    """Begin a raw stream: steps in, outputs out, on any model."""

    type: Literal["start"]
    raw: Literal[True]
    inputs: Annotated[
        dict[PortName, list[Any]],
        Field(max_length=MAX_PORTS, description="By port of an encoder, its whole input; none where there is none."),
    ] = Field(default_factory=dict)
    binary: Annotated[
        bool,
        Field(description="Frames are rows as bytes, little-endian, both ways; for a model with one port of numbers."),
    ] = False
    each: Annotated[bool, Field(description="Tell the outputs of every step; else those of a frame's last alone.")] = (
        True
    )


class Steps(StepFields):
    """Take these steps; they are answered by one frame, `outputs`."""

    type: Literal["steps"]


class Finish(Message):
    """End the raw stream behind the steps that were sent, and keep its memory."""

    type: Literal["finish"]


RAW_FRAME: TypeAdapter[RawStart | Cancel] = TypeAdapter(Annotated[RawStart | Cancel, Field(discriminator="type")])
RAW_START: TypeAdapter[RawStart] = TypeAdapter(RawStart)
RAW_MESSAGE: TypeAdapter[Steps | Finish | Cancel | RawStart] = TypeAdapter(
    Annotated[Steps | Finish | Cancel | RawStart, Field(discriminator="type")]
)
FRAMES = (RawStart, Steps, Finish)
"""What a client sends for a raw stream, besides Cancel."""
