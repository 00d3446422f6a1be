"""The events of a stream, over a WebSocket and as server-sent events alike: accepted, token, finished, error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from carousel.service.engine.parameters import Floats
from carousel.service.errors import ServiceError
from carousel.service.served.repository import ServedModel
from carousel.service.work.captioning import CaptionToken
from carousel.service.work.generation import Finished, Token

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Not json.dumps, which makes an encoder for each call that asks for its own format."""


def dumps(event: dict[str, Any]) -> str:
    """An event as JSON."""
    return _encode(event)


def accepted(
    request_id: str, model: ServedModel, prompt_tokens: int, cached_tokens: int = 0, unknown_tokens: int = 0
) -> dict[str, Any]:
    """The first event."""
    return {
        "type": "accepted",
        "request_id": request_id,
        "model": model.name,
        "version": model.bundle.version,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "unknown_tokens": unknown_tokens,
    }


def token_json(token: Token | CaptionToken) -> str:
    """The `token` event, put together by hand: it is written once per token, and only the text needs escaping."""
    looked = "" if isinstance(token, Token) or token.attention is None else f',"attention":{_map_json(token.attention)}'
    return (
        f'{{"type":"token","index":{token.index},"token":{token.token},'
        f'"text":{quote(token.text)},"logprob":{token.logprob!r}{looked}}}'
    )


quote = json.encoder.encode_basestring
"""A string as JSON, with JSON's escapes and no others: text stays as it is."""


def finished(event: Finished) -> dict[str, Any]:
    """The last event."""
    prompt, completion = event.usage.prompt_tokens, event.usage.completion_tokens
    return {
        "type": "finished",
        "reason": event.reason.value,
        "text": event.text,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def error(what: ServiceError) -> dict[str, Any]:
    """The last event of a stream that failed."""
    return {"type": "error", **what.body()["error"]}


def attention_map(looked: Floats) -> list[list[float]]:
    """Where a model looked, as clients are told <float32>[rows, columns]: a share needs no more than five digits."""
    rounded: list[list[float]] = np.round(looked.astype(np.float64), 5).tolist()
    return rounded


def _map_json(looked: Floats) -> str:
    return json.dumps(attention_map(looked), separators=(",", ":"))
