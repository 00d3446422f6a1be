"""What goes over the wire of `predict`, in both directions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from carousel.service.api.wire.messages import CacheFields, MemoryFields, MemoryTold, UrgencyFields

MAX_PORTS = 64
MAX_STEPS = 1_000_000
PortName = Annotated[str, Field(max_length=200)]


class PredictRequest(MemoryFields, CacheFields, UrgencyFields):
    """Steps of one sequence, in terms of the model's ports."""

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
    context: Annotated[
        dict[PortName, Any],
        Field(max_length=MAX_PORTS, description="By port, the one row that every step reads; all that the model has."),
    ] = Field(default_factory=dict)
    outputs: Annotated[
        list[PortName] | None,
        Field(min_length=1, max_length=MAX_PORTS, description="Ports to tell; all where left out."),
    ] = None
    each: Annotated[bool, Field(description="Tell the outputs of every step, not of the last alone.")] = False


class PredictResponse(MemoryTold):
    """What the model says."""

    model: str
    version: int
    steps: Annotated[int, Field(description="How many were taken; 0 by an encoder alone.")]
    cached_steps: Annotated[int, Field(description="How many of them had been taken before, and were not again.")]
    outputs: Annotated[
        dict[str, Any],
        Field(
            description="By port the row of the last step; with `each` of every step; all that an encoder alone says."
        ),
    ]
