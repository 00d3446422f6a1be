"""How a client is told an error: in the one shape; on OpenAI's routes with OpenAI's statuses and fields besides; and on
those of the Open Inference Protocol as its clients can read it, a text and nothing else.

Clients of OpenAI's choose an exception by the status, look for `type` and `param` in the error, and send anything again
that comes back with 409 or 5xx, unless the answer says that it is no use (`x-should-retry`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from carousel.service.errors import ErrorCode, ServiceError

COMPLETIONS_PATH = "/v1/completions"
MODELS_PATH = "/v1/models"
OIP_PATH = "/v2"

_STATUSES: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "empty_prompt": 400,
    "unknown_tokens": 400,
    "token_out_of_range": 400,
    "prompt_too_long": 400,
    "invalid_session_id": 400,
    "wrong_task": 404,
}
"""Of completions, where OpenAI's are other than ours."""

_PARAMS: dict[ErrorCode, str] = {
    "empty_prompt": "prompt",
    "unknown_tokens": "prompt",
    "token_out_of_range": "prompt",
    "prompt_too_long": "prompt",
    "unknown_model": "model",
    "wrong_task": "model",
    "invalid_session_id": "session",
    "invalid_state_token": "state",
}
"""The field of a completions request that an error is about, where its code says it."""

_LONGEST_SPREAD_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is sent for an error."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def answer(error: ServiceError, path: str) -> Answer:
    """An error as who asked for this path is told it."""
    status, body, headers = error.status, error.body(), {}
    if path == COMPLETIONS_PATH:
        status = _STATUSES.get(error.code, status)
    if path == COMPLETIONS_PATH or _is_of_models(path):
        body = openai_body(error)
        headers["x-should-retry"] = "true" if error.retryable else "false"
    if path == OIP_PATH or path.startswith(f"{OIP_PATH}/"):
        body = {"error": error.body()["error"]["message"]}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(_spread(error.retry_after_seconds))
    if status == 401:  # RFC 6750, section 3
        headers["www-authenticate"] = "Bearer" if error.code == "missing_key" else 'Bearer error="invalid_token"'
    if error.code == "upgrade_required":  # RFC 9110, section 15.5.22
        headers |= {"upgrade": "websocket", "connection": "upgrade"}
    return Answer(status, body, headers)


def openai_body(error: ServiceError) -> dict[str, Any]:
    """The one shape of errors with OpenAI's fields in it: `type`, and the `param` that is at fault."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    return {"error": {**error.body()["error"], "type": kind, "param": error.param or _PARAMS.get(error.code)}}


def _is_of_models(path: str) -> bool:
    """Whether it is the list of models, or one of them: below a model all is ours."""
    rest = path.removeprefix(MODELS_PATH)
    return rest != path and rest.count("/") <= 1 and (not rest or rest[0] == "/")


def _spread(seconds: int) -> int:
    """A time to come again from this one to twice as much: those who are refused together must not come together."""
    return seconds + random.randint(0, min(max(2, seconds), _LONGEST_SPREAD_SECONDS))
