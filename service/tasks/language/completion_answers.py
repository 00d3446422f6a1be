"""What completions answer, as the API's description has it. It is written by hand (completions.py), and leaner."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from carousel.service.api.wire.messages import MemoryTold


class CompletionLogprobs(BaseModel):
    """OpenAI's `logprobs`: lists with an entry for each token."""

    tokens: list[str]
    token_logprobs: Annotated[list[float | None], Field(description="In nats; null where nothing comes before.")]
    top_logprobs: Annotated[
        list[dict[str, float] | None], Field(description="The most probable tokens at each place, and the sampled one.")
    ]
    text_offset: Annotated[list[int], Field(description="Where in the choice's text each token begins.")]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Annotated[
        Literal["stop", "length", "cancelled"] | None, Field(description="null in a stream's events before the last.")
    ]


class CachedTokens(BaseModel):
    """Of a prompt."""

    cached_tokens: Annotated[int, Field(description="Those that were not consumed again.")]


class CompletionUsage(BaseModel):
    """Tokens of all choices together; each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionResponse(MemoryTold):
    """OpenAI's answer to completions. A stream's events are the same without `usage`, but where that is asked for."""

    id: str
    object: Literal["text_completion"]
    created: Annotated[int, Field(description="Unix seconds.")]
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
    unknown_tokens: Annotated[
        int, Field(description="Tokens of the prompts that stand for what the model's vocabulary does not know.")
    ]
