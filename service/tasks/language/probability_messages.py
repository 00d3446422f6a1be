"""What goes over the wire of the routes that tell probabilities, in both directions."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from carousel.service.api.wire.messages import CacheFields, MemoryFields, MemoryTold, TokenIds, UrgencyFields

MAX_ALTERNATIVES = 100
UNKNOWN = "Those of the prompt that stand for what the vocabulary lacks."


class NextTokenRequest(MemoryFields, CacheFields, UrgencyFields):
    """Ask for the most probable next tokens, after a text or after what a memory holds."""

    text: str | None = None
    tokens: TokenIds | None = None
    top: Annotated[int, Field(ge=1, le=MAX_ALTERNATIVES, description="How many.")] = 10

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if (self.text is not None and self.tokens is not None) or (self.prompt is None and not self.memory.resumes):
            raise ValueError("give either text or tokens; with session or state, they may be left out")
        return self

    @property
    def prompt(self) -> str | list[int] | None:
        """Whichever was given; None where there is only a memory."""
        return self.text if self.text is not None else self.tokens


class ScoreRequest(MemoryFields, UrgencyFields):
    """Ask how probable a text is."""

    text: str | None = None
    tokens: TokenIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give either text or tokens")
        return self

    @property
    def prompt(self) -> str | list[int]:
        """Whichever was given."""
        return self.text if self.text is not None else self.tokens or []


class Candidate(BaseModel):
    """One of the most probable next tokens."""

    token: int
    text: str
    probability: float
    logprob: float


class NextTokenResponse(MemoryTold):
    """The most probable next tokens, best first."""

    model: str
    version: int
    prompt_tokens: int
    cached_tokens: Annotated[int, Field(description="Those of the prompt that were not consumed again.")]
    unknown_tokens: Annotated[int, Field(description=UNKNOWN)]
    candidates: list[Candidate]


class ScoredToken(BaseModel):
    """A token with its log-probability given all before it, in nats; null for the first of all and the impossible."""

    token: int
    text: str
    logprob: float | None


class ScoreResponse(MemoryTold):
    """How probable a text is. Totals are over all tokens but the first of all, which has nothing before it."""

    model: str
    version: int
    tokens: list[ScoredToken]
    unknown_tokens: Annotated[int, Field(description=UNKNOWN)]
    total_logprob: float | None
    nats_per_token: float | None
    perplexity: Annotated[float | None, Field(description="Null where it is more than a double can hold.")]
    bits_per_character: float | None
