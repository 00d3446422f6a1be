"""What goes over the wire, in both directions. Unknown fields are refused: a misspelt parameter must not be ignored."""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from carousel.models.manifest import MAX_TEMPERATURE, Manifest
from carousel.service.api.wire.lists import few_told, in_slices
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.port import Urgency
from carousel.service.work.memories import MemoryChoice

MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_ALTERNATIVES = 100
MAX_COPIES = 16
MAX_FIELDS = 64
MAX_SALT_CHARACTERS = 128
DEFAULT_MAX_TOKENS = 256

DRAWN = -1
"""The seed of clients that must send one and mean none."""

INSTEAD = {
    "presence_penalty": ", or give repetition_penalty, which divides the logits of tokens seen before",
    "frequency_penalty": ", or give repetition_penalty, which divides the logits of tokens seen before",
    "suffix": ": a recurrent model goes on from what it has read, and reads nothing that comes after",
}
"""What there is in place of fields of OpenAI's that are not supported."""

# The first wrong element is enough: a list of a million would make a million errors and hold everybody up.
TokenIds = Annotated[list[int], Field(fail_fast=True), WrapValidator(in_slices)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True), WrapValidator(few_told)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)]


UNKNOWN = "Those of the prompt that stand for what the vocabulary lacks."


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


class MemoryTold(BaseModel):
    """What an answer says of the new memory."""

    session: Annotated[str | None, Field(description="The session that was written.")] = None
    state: Annotated[str | None, Field(description="The token that was asked for.")] = None


class SamplingFields(Message):
    """How to sample. A field left out takes the model's default (its manifest's `decoding`)."""

    max_tokens: Annotated[int | None, Field(ge=1, description="Tokens to sample at most.")] = None
    temperature: Annotated[Temperature | None, Field(description="Divides the logits; 0 is greedy.")] = None
    top_k: Annotated[int | None, Field(ge=0, description="Keep the k most probable tokens; 0 keeps all.")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="Keep the smallest set of tokens with this mass.")] = (
        None
    )
    min_p: Annotated[
        float | None, Field(ge=0, le=1, description="Keep tokens at least this times as probable as the best.")
    ] = None
    repetition_penalty: Annotated[
        float, Field(ge=0.01, le=100, description="Divides the logits of tokens seen before; 1 changes nothing.")
    ] = 1.0
    seed: Annotated[
        int | None,
        Field(ge=DRAWN, lt=2**63, description="The same seed gives the same tokens; none or -1 draws one."),
    ] = None

    def parameters(
        self,
        manifest: Manifest,
        *,
        default_max_tokens: int,
        default_temperature: float | None = None,
        alternatives: int = 0,
    ) -> SamplingParameters:
        """The engine's sampling parameters.

        Args:
            manifest: of the model.
            default_max_tokens: where the field is left out.
            default_temperature: the same; None for the model's.
            alternatives: to report beside each token.

        Raises:
            NotAllowed: a value that this model does not allow.
        """
        defaults, limit = manifest.decoding, manifest.limits.max_new_tokens
        max_tokens = min(default_max_tokens, limit) if self.max_tokens is None else self.max_tokens
        if max_tokens > limit:
            raise NotAllowed(
                "max_tokens",
                f"max_tokens is {max_tokens:,}; allowed are 1 to {limit:,} (manifest limits.max_new_tokens)",
            )
        if default_temperature is None:
            default_temperature = defaults.temperature
        temperature = default_temperature if self.temperature is None else self.temperature
        # What is greedy needs no seed, and the kernel takes its time for one.
        return SamplingParameters(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed if self.seed not in (None, DRAWN) else 0 if temperature == 0.0 else secrets.randbits(63),
            alternatives=alternatives,
        )


def check_top_k(top_k: int, vocabulary_size: int) -> None:
    """Refuse a k that cannot be met.

    Raises:
        NotAllowed: top_k is above the vocabulary.
    """
    if top_k > vocabulary_size:
        raise NotAllowed("top_k", f"top_k is {top_k:,}; allowed are 0 (all) to the vocabulary's {vocabulary_size:,}")


class Sampling(SamplingFields):
    """The `sampling` object of the WebSocket stream."""

    stop: Annotated[StopStrings, Field(description="Strings that end the text.")] = []


class TextOrTokens(Message):
    """A prompt, as text or as ids."""

    text: str | None = None
    tokens: TokenIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TextOrTokens:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give either text or tokens")
        return self

    @property
    def prompt(self) -> str | list[int]:
        """Whichever was given."""
        return self.text if self.text is not None else self.tokens or []


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


class ScoreRequest(TextOrTokens, MemoryFields, UrgencyFields):
    """Ask how probable a text is."""


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
    cached_tokens: Annotated[int, Field(description="Those of the prompt that were not eaten again.")]
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


class SessionInfo(BaseModel):
    """A session. Times are Unix seconds."""

    session: str
    model: str
    version: Annotated[int, Field(description="Of the model that wrote it last.")]
    steps: Annotated[int, Field(description="Tokens or attempts that it holds.")]
    created_at: float
    updated_at: float
    expires_in_seconds: float


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    retryable: bool


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class OpenAIErrorDetail(ErrorDetail):
    """What went wrong, with OpenAI's fields."""

    type: Annotated[str, Field(description="invalid_request_error, rate_limit_error or server_error.")]
    param: Annotated[str | None, Field(description="The field at fault, where it is one.")]


class OpenAIErrorBody(BaseModel):
    """The shape of errors on OpenAI's routes."""

    error: OpenAIErrorDetail
