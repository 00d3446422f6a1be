"""OpenAI's `logprobs` of a completion: parallel lists, an entry for each token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from carousel.models.codec.text import TextCodec
from carousel.service.api.wire.frames import quote
from carousel.service.engine.parameters import Alternative
from carousel.service.work.generation import Token

Logprobs = dict[str, list[Any]]


def logprobs_of(
    codec: TextCodec,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    beside: Iterable[tuple[Alternative, ...]],
    offsets: Iterable[int],
) -> Logprobs:
    """What is told of tokens.

    Args:
        codec: of the model.
        tokens: ids.
        logprobs: of each, in nats; None for one that has nothing before it.
        beside: the most probable tokens in each place.
        offsets: where in the text of the choice each begins.
    """
    name = codec.token_name
    places = zip(tokens, logprobs, beside, strict=True)
    return {
        "tokens": [name(token) for token in tokens],
        "token_logprobs": [_number(logprob) for logprob in logprobs],
        "top_logprobs": [None if logprob is None else top_logprobs(token, logprob, best, name)
                         for token, logprob, best in places],
        "text_offset": list(offsets),
    }  # fmt: skip


def sampled_logprobs(codec: TextCodec, tokens: Sequence[Token], offset: int) -> Logprobs:
    """What is told of sampled tokens; the first begins at `offset` in the text of its choice."""
    return logprobs_of(
        codec,
        [token.token for token in tokens],
        [token.logprob for token in tokens],
        [token.alternatives for token in tokens],
        list(itertools.accumulate((len(token.text) for token in tokens), initial=offset))[:-1],
    )


def logprobs_json(codec: TextCodec, token: Token, offset: int) -> str:
    """`sampled_logprobs` of one token as JSON."""

    def name(one: int) -> str:
        return quote(codec.token_name(one))

    top = top_logprobs(token.token, token.logprob, token.alternatives, name)
    told = ",".join([f"{one}:{_json(logprob)}" for one, logprob in top.items()])
    return (
        f'{{"tokens":[{name(token.token)}],"token_logprobs":[{_json(_number(token.logprob))}],'
        f'"top_logprobs":[{{{told}}}],"text_offset":[{offset}]}}'
    )


def top_logprobs(
    token: int, logprob: float, best: Sequence[Alternative], name: Callable[[int], str]
) -> dict[str, float | None]:
    """The most probable tokens at a place, best first, and the one that stands there, by their names.

    Where two tokens have the same name, that of the larger log-probability counts.
    """
    logprobs = {one.token: one.logprob for one in best}
    logprobs[token] = logprob  # the very number that `token_logprobs` has
    named: dict[str, float] = {}
    for other, value in logprobs.items():
        text = name(other)
        named[text] = max(named.get(text, -math.inf), value)
    return {name: _number(value) for name, value in named.items()}


def _number(logprob: float | None) -> float | None:
    """As JSON can express it: null for the logarithm of a probability of zero."""
    return logprob if logprob is not None and math.isfinite(logprob) else None


def _json(number: float | None) -> str:
    return "null" if number is None else repr(number)
