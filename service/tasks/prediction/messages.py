"""What goes over the wire of `predict`, in both directions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from carousel.service.api.wire.messages import CacheFields, MemoryTold
from carousel.service.api.wire.rows import PortFields, StepFields


class PredictRequest(PortFields, StepFields, CacheFields):
    """Steps of one sequence, in terms of the model's ports."""

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
