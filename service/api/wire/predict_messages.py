"""What goes over the wire of `predict`, in both directions."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from carousel.service.api.wire.messages import CacheFields, MemoryFields, MemoryTold, NotAllowed, UrgencyFields
from carousel.service.api.wire.rows import PortFields, StepFields
from carousel.service.work.stepping import MAX_SEQUENCES


class SequenceFields(PortFields, MemoryFields, StepFields, CacheFields):
    """Steps of one sequence, in terms of the model's ports."""

    each: Annotated[bool, Field(description="Tell the outputs of every step, not of the last alone.")] = False


class PredictRequest(SequenceFields, UrgencyFields):
    """Steps of one sequence, or of several that have nothing to do with each other."""

    sequences: Annotated[
        list[SequenceFields] | None,
        Field(
            min_length=1,
            max_length=MAX_SEQUENCES,
            description="Instead of the fields of one: of each sequence its own. All are taken, or none.",
        ),
    ] = None

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.sequences is not None:
            for name in sorted(self.model_fields_set & set(SequenceFields.model_fields)):
                raise NotAllowed(name, "belongs into each of the sequences")
        return self


class PredictedSequence(MemoryTold):
    """What the model says of one sequence."""

    steps: Annotated[int, Field(description="How many were taken; 0 by an encoder alone.")]
    cached_steps: Annotated[int, Field(description="How many of them had been taken before, and were not again.")]
    outputs: Annotated[
        dict[str, Any],
        Field(
            description="By port the row of the last step; with `each` of every step; all that an encoder alone says."
        ),
    ]


class PredictedOne(PredictedSequence):
    """What the model says."""

    model: str
    version: int


class PredictedMany(BaseModel):
    """What it says of several, in their order."""

    model: str
    version: int
    sequences: list[PredictedSequence]


PredictResponse = PredictedOne | PredictedMany
