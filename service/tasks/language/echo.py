"""A prompt as a completion gives it back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from carousel.models.codec.text import TextCodec
from carousel.service.engine.parameters import Ids
from carousel.service.work.prompt import LONG_TEXT


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt's text: what was sent, or what the ids say; of a character at its end that is not whole, nothing."""

    text: str
    offsets: list[int]
    """Where in it each token begins, where that is asked for."""


async def echo_of(codec: TextCodec, prompt: str | list[int], context: Ids, *, offsets: bool) -> Echo:
    """The echo of a prompt.

    Args:
        codec: of the model, which can encode the prompt.
        prompt: as it was sent.
        context: the last ids before it.
        offsets: whether they are asked for.
    """
    if isinstance(prompt, str) and not offsets:
        return Echo(prompt, [])
    if len(prompt) > LONG_TEXT:
        return await asyncio.to_thread(_echo, codec, prompt, context)
    return _echo(codec, prompt, context)


def _echo(codec: TextCodec, prompt: str | list[int], context: Ids) -> Echo:
    if isinstance(prompt, str):
        return Echo(prompt, codec.offsets(prompt))
    detokenizer = codec.detokenizer(context.tolist())
    pieces, offsets, length = [], [], 0
    for token in prompt:
        offsets.append(length)
        pieces.append(detokenizer.push(token))
        length += len(pieces[-1])
    return Echo("".join(pieces), offsets)
