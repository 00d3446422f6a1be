"""The events of a stream, over a WebSocket and as server-sent events alike: accepted, token, finished, error."""

from __future__ import annotations

import json
from typing import Any, Protocol

from carousel.service.errors import ServiceError
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import Finished

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


class TokenEvent(Protocol):
    """A token as it comes."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def token(self) -> int: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def logprob(self) -> float: ...  # noqa: D102


def token_json(token: TokenEvent, more: str = "") -> str:
    """The `token` event, put together by hand: it is written once per token, and only the text needs escaping.

    Args:
        token: what came.
        more: fields that a task adds, as JSON, each with a comma before it.
    """
    return (
        f'{{"type":"token","index":{token.index},"token":{token.token},'
        f'"text":{quote(token.text)},"logprob":{token.logprob!r}{more}}}'
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
