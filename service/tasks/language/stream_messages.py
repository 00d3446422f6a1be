"""The JSON frames that a client sends over a WebSocket to a language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from carousel.service.api.wire.messages import CacheFields, Cancel, MemoryFields, TokenIds, UrgencyFields
from carousel.service.api.wire.sampling import Sampling


class StreamPrompt(UrgencyFields):
    """What `start` and `feed` have in common."""

    prompt: str | None = None
    tokens: TokenIds | None = None
    sampling: Sampling = Sampling()
    return_state: Annotated[bool, Field(description="Let `finished` bring a token of the new memory.")] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> StreamPrompt:
        if (self.prompt is None) == (self.tokens is None):
            raise ValueError("give either prompt or tokens")
        return self

    @property
    def text_or_ids(self) -> str | list[int]:
        """Whichever was given."""
        return self.prompt if self.prompt is not None else self.tokens or []


class Start(StreamPrompt, MemoryFields, CacheFields):
    """Begin a generation from an empty memory, or from that of a session or token."""

    type: Literal["start"]


class Feed(StreamPrompt):
    """Go on from where this socket's last generation ended, after consuming the prompt given here."""

    type: Literal["feed"]


StreamMessage: TypeAdapter[Start | Feed | Cancel] = TypeAdapter(
    Annotated[Start | Feed | Cancel, Field(discriminator="type")]
)
