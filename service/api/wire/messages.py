"""What messages of clients have in common. Unknown fields are refused: a misspelt parameter must not be ignored."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, model_validator

from carousel.service.api.wire.lists import in_slices
from carousel.service.engine.port import Urgency
from carousel.service.work.memories import MemoryChoice

MAX_FIELDS = 64
MAX_SALT_CHARACTERS = 128

# The first wrong element is enough: a list of a million would make a million errors and hold everybody up.
TokenIds = Annotated[list[int], Field(fail_fast=True), WrapValidator(in_slices)]


class NotAllowed(ValueError):
    """A field's value is one that the model does not allow."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Message(BaseModel):
    """A message from a client: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        """Each unknown field makes an error: a body full of them must not make a million."""
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"the object has {len(value):,} fields; allowed are at most {MAX_FIELDS}")
        return value


class MemoryFields(Message):
    """Which memory to go on from, and who keeps the new one."""

    session: Annotated[
        str | None, Field(description="Go on from this session and write it; it is made where there is none.")
    ] = None
    state: Annotated[str | None, Field(description="Go on from the memory in this token.")] = None
    return_state: Annotated[bool, Field(description="Answer with a token of the new memory.")] = False

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.session is not None and self.state is not None:
            raise NotAllowed("state", "give either session or state")
        return self

    @property
    def memory(self) -> MemoryChoice:
        """The fields."""
        return MemoryChoice(self.session, self.state, self.return_state)


class CacheFields(Message):
    """Who may share the states of prompts."""

    cache_salt: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_SALT_CHARACTERS,
            description="Prompts with different salts never share a cached state.",
        ),
    ] = None


class UrgencyFields(Message):
    """Who goes first, and when it is too late."""

    priority: Annotated[
        Literal["interactive", "batch"], Field(description="Batch waits as long as anything interactive does.")
    ] = "interactive"
    timeout_seconds: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="How long it may take; then it ends with deadline_exceeded."),
    ] = None

    @property
    def urgency(self) -> Urgency:
        """The fields."""
        return Urgency(self.priority == "batch", math.inf if self.timeout_seconds is None else self.timeout_seconds)


class Cancel(Message):
    """End the running generation."""

    type: Literal["cancel"]


class MemoryTold(BaseModel):
    """What an answer says of the new memory."""

    session: Annotated[str | None, Field(description="The session that was written.")] = None
    state: Annotated[str | None, Field(description="The token that was asked for.")] = None
