"""From what a client sends to ids the engine consumes, with every way that can be refused."""

from __future__ import annotations

import asyncio

import numpy as np

from carousel.models.codec.text import TextCodec
from carousel.models.errors import TextTooLong, UnencodableText
from carousel.service.engine.parameters import Ids
from carousel.service.engine.port import Snapshot
from carousel.service.errors import RequestError
from carousel.service.served.repository import ServedModel

LONG_TEXT = 4096
"""Characters, or ids, from which on a prompt is looked at on a thread, not to hold the event loop up."""

PIECE = 1 << 14
"""Ids that are made an array in one call: other threads have their turn in between."""


async def prompt_ids(model: ServedModel, prompt: str | list[int]) -> Ids:
    """The ids of a prompt given as text or as ids. <int64>[N], N at least 1

    Raises:
        RequestError: invalid_request, empty_prompt, unknown_tokens, token_out_of_range or prompt_too_long.
    """
    return await asyncio.to_thread(_ids, model, prompt) if len(prompt) > LONG_TEXT else _ids(model, prompt)


def _ids(model: ServedModel, prompt: str | list[int]) -> Ids:
    codec, longest = model.bundle.codec(TextCodec), model.bundle.manifest.limits.max_prompt_tokens
    if isinstance(prompt, str):
        try:
            tokens = codec.encode(prompt, longest)
        except UnencodableText as error:
            raise RequestError("invalid_request", f"prompt: {error}", param="prompt") from None
        except TextTooLong as error:
            raise _too_long(model, error.count) from None
    else:
        tokens = prompt
    if not tokens:
        raise RequestError(
            "empty_prompt",
            f"the prompt has no tokens; {model.name} has none of its own to begin a text with, so give at least 1",
        )
    if len(tokens) > longest:
        raise _too_long(model, len(tokens))
    if isinstance(prompt, str):
        if all(token == codec.unknown_id for token in tokens):
            raise RequestError(
                "unknown_tokens", f"none of the prompt's {len(tokens):,} tokens is in the vocabulary of {model.name}"
            )
    else:
        size = codec.vocabulary_size
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise RequestError(
                "token_out_of_range", f"token {wrong} is not in the vocabulary; allowed are 0 to {size - 1:,}"
            )
    return as_array(tokens)


def as_array(ids: list[int]) -> Ids:
    """The same as an array. <int64>[N]"""
    if len(ids) <= PIECE:
        return np.array(ids, np.int64)
    return np.concatenate([np.array(ids[start : start + PIECE], np.int64) for start in range(0, len(ids), PIECE)])


def _too_long(model: ServedModel, count: int) -> RequestError:
    return RequestError(
        "prompt_too_long",
        f"the prompt is {count:,} tokens; {model.name} takes 1 to "
        f"{model.bundle.manifest.limits.max_prompt_tokens:,} (manifest limits.max_prompt_tokens)",
    )


def unknown_tokens(model: ServedModel, ids: Ids) -> int:
    """How many of a prompt's tokens stand for what the model's vocabulary lacks. <int64>[N]"""
    unknown = model.bundle.codec(TextCodec).unknown_id
    return 0 if unknown is None else int(np.count_nonzero(ids == unknown))


def check_unconsumed(model: ServedModel, recalled: Snapshot | None, fed: int) -> None:
    """Refuse to pile up prompts that were cancelled before they were consumed.

    Raises:
        RequestError: prompt_too_long.
    """
    unconsumed = 0 if recalled is None else len(recalled.pending)
    longest = model.bundle.manifest.limits.max_prompt_tokens
    if unconsumed > 1 and unconsumed + fed > longest:  # 1 is the last token
        raise RequestError(
            "prompt_too_long",
            f"the prompt is {fed:,} tokens and {unconsumed:,} are left of a generation that was cancelled; "
            f"{model.name} takes {longest:,} together (manifest limits.max_prompt_tokens)",
        )
