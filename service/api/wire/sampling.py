"""How to sample, as a client says it."""

from __future__ import annotations

import secrets
from typing import Annotated

from pydantic import Field, WrapValidator

from carousel.models.manifest import MAX_TEMPERATURE, Manifest
from carousel.service.api.wire.lists import few_told
from carousel.service.api.wire.messages import Message, NotAllowed
from carousel.service.engine.parameters import SamplingParameters

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

DRAWN = -1
"""The seed of clients that must send one and mean none."""

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True), WrapValidator(few_told)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)]


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

    stop: Annotated[StopStrings, Field(description="Strings that end the text.")] = []  # noqa: RUF012 (pydantic copies it)
