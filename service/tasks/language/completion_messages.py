"""What a client asks of OpenAI's completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, WrapValidator, field_validator, model_validator

from carousel.service.api.wire.lists import few_told
from carousel.service.api.wire.messages import CacheFields, MemoryFields, NotAllowed, TokenIds, UrgencyFields
from carousel.service.api.wire.sampling import SamplingFields, StopString, StopStrings

MAX_PROMPTS = 128
MAX_COPIES = 16
INSTEAD = {
    "presence_penalty": ", or give repetition_penalty, which divides the logits of tokens seen before",
    "frequency_penalty": ", or give repetition_penalty, which divides the logits of tokens seen before",
    "suffix": ": a recurrent model goes on from what it has read, and reads nothing that comes after",
}
"""What there is in place of fields of OpenAI's that are not supported."""


def _kind_of_prompts(value: Any) -> str | None:
    """Which of four things `prompt` is, by its first entry: then only that one's mistakes are told."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else 0
    kinds = {int: "tokens", str: "texts", list: "lists"}
    return kinds.get(type(first))


Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[
        list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), WrapValidator(few_told), Tag("texts")
    ]
    | Annotated[
        list[TokenIds],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        WrapValidator(few_told),
        Tag("lists"),
    ],
    Discriminator(
        _kind_of_prompts,
        custom_error_type="prompts",
        custom_error_message="must be a text, a list of texts, a list of token ids, or a list of such lists",
    ),
]


class CompletionsRequest(SamplingFields, MemoryFields, CacheFields, UrgencyFields):
    """OpenAI's completions, with top_k, min_p, repetition_penalty and a memory besides.

    Clients send fields of OpenAI's that are not offered here; they may, with the value that asks for nothing.
    """

    model: str
    max_tokens: Annotated[
        int | None, Field(ge=0, description="Tokens to sample at most; 0, with echo, gives the prompt back alone.")
    ] = None
    prompt: Prompts
    stop: StopString | StopStrings | None = None
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_COPIES, description="Choices for each prompt.")] = None
    echo: bool | None = None
    user: str | None = None
    best_of: Annotated[
        int | None,
        Field(ge=1, le=MAX_COPIES, description="Sample so many, and answer with the n of the highest mean logprob."),
    ] = None
    presence_penalty: Annotated[float | None, Field(description="Not supported: 0.")] = None
    frequency_penalty: Annotated[float | None, Field(description="Not supported: 0.")] = None
    suffix: Annotated[str | None, Field(description="Not supported: empty.")] = None
    logit_bias: Annotated[dict[str, float] | None, Field(description="Not supported: empty.")] = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, value: Any, info: ValidationInfo) -> Any:
        """Leave out what is not known and the server's operator wants ignored (`ignored` of the context)."""
        ignored = set((info.context or {}).get("ignored", ())) - set(cls.model_fields)
        if isinstance(value, dict) and not ignored.isdisjoint(value):
            return {name: field for name, field in value.items() if name not in ignored}
        return value

    @model_validator(mode="after")
    def _samples_something(self) -> Self:
        if self.max_tokens == 0 and (not self.echo or self.memory.keeps):
            raise NotAllowed(
                "max_tokens", "max_tokens is 0; allowed is at least 1, and 0 with echo and without a memory to keep"
            )
        return self

    @model_validator(mode="after")
    def _best_of_at_least_n(self) -> Self:
        n, best_of = self.n or 1, self.best_of or self.n or 1
        if best_of < n:
            raise NotAllowed("best_of", f"best_of is {best_of}; allowed are n, which is {n}, to {MAX_COPIES}")
        if self.stream and best_of > n:
            raise NotAllowed(
                "best_of", f"stream tells choices as they come: best_of must be n, which is {n}, or left out"
            )
        return self

    @model_validator(mode="after")
    def _one_text_per_memory(self) -> Self:
        if (self.memory.keeps or self.memory.resumes) and len(self.prompts) * self.copies > 1:
            named = next(name for name in ("session", "state", "return_state") if getattr(self, name))
            raise NotAllowed(
                named, "session, state and return_state are for one prompt and n of 1: a memory is of one text"
            )
        return self

    @field_validator("presence_penalty", "frequency_penalty", "suffix", "logit_bias")
    @classmethod
    def _asks_for_nothing(cls, value: object, info: ValidationInfo) -> object:
        if value:
            raise ValueError(f"is not supported; leave it out{INSTEAD.get(info.field_name or '', '')}")
        return value

    @field_validator("stop")
    @classmethod
    def _list_of_stops(cls, stop: str | list[str] | None) -> list[str]:
        return [stop] if isinstance(stop, str) else stop or []

    @property
    def copies(self) -> int:
        """How many texts are sampled for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts of one request."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        many: list[str | list[int]] = [entry for entry in self.prompt if not isinstance(entry, int)]
        return many or [[entry for entry in self.prompt if isinstance(entry, int)]]
