"""Every error a client can get: one JSON shape, one stable code each.

    ServiceError          {"error": {"code", "message", "retryable"}}
    ├── RequestError      the request is at fault: sending it again changes nothing
    └── Unavailable       the server is at fault or busy: may be sent again, where `retryable`

A code maps to one HTTP status. On a WebSocket the error is the last typed event; the close code is 4000 + status.
"""

from __future__ import annotations

from typing import Any, Final, Literal

ErrorCode = Literal[
    "malformed_json",
    "malformed_http",
    "head_too_large",
    "request_timeout",
    "malformed_form",
    "invalid_request",
    "empty_prompt",
    "unknown_tokens",
    "token_out_of_range",
    "prompt_too_long",
    "body_too_large",
    "invalid_image",
    "image_too_large",
    "no_attention",
    "wrong_task",
    "no_attempts",
    "unknown_skill",
    "invalid_session_id",
    "invalid_state_token",
    "unknown_session",
    "session_expired",
    "session_busy",
    "session_lease_lost",
    "model_mismatch",
    "memory_too_large",
    "session_store_unavailable",
    "unknown_model",
    "unknown_version",
    "bundle_refused",
    "admin_key_needed",
    "not_found",
    "upgrade_required",
    "foreign_origin",
    "foreign_host",
    "method_not_allowed",
    "unsupported_frame",
    "out_of_order",
    "slow_reader",
    "capacity_exceeded",
    "deadline_exceeded",
    "model_unavailable",
    "shutting_down",
    "step_failed",
    "missing_key",
    "unknown_key",
    "rate_limited",
    "quota_exceeded",
    "internal_error",
]
"""The stable codes. One that is misspelt is an error of types."""

ERRORS: Final[dict[ErrorCode, tuple[int, bool, str]]] = {
    "malformed_json": (400, False, "The body or frame is not JSON."),
    "malformed_http": (400, False, "What came is not HTTP/1.1, or not whole."),
    "head_too_large": (431, False, "The request line and the headers are longer, or more, than the server takes."),
    "request_timeout": (
        408,
        True,
        "The request took too long to come; or the socket had nothing to do for too long.",
    ),
    "malformed_form": (400, False, "The body is not the multipart form that its header says it is."),
    "invalid_request": (422, False, "A field is missing, unknown, of the wrong type or out of range."),
    "empty_prompt": (422, False, "The prompt has no tokens."),
    "unknown_tokens": (422, False, "The model's vocabulary knows nothing in the prompt."),
    "token_out_of_range": (422, False, "A token id is not in the model's vocabulary."),
    "prompt_too_long": (413, False, "The prompt has more tokens than the model takes."),
    "body_too_large": (413, False, "The body is longer than the server takes."),
    "invalid_image": (400, False, "The bytes are no image that is read here, or a broken one."),
    "image_too_large": (413, False, "The image has more pixels than are decoded."),
    "no_attention": (409, False, "The model does not say where it looks."),
    "wrong_task": (409, False, "The model is there, and does not do what this route asks."),
    "no_attempts": (422, False, "There is no attempt, or none at a skill that the model knows."),
    "unknown_skill": (422, False, "The model has no such skill."),
    "invalid_session_id": (422, False, "The id cannot name a session."),
    "invalid_state_token": (400, False, "The token was not signed here for this caller, or is not whole."),
    "unknown_session": (404, False, "There is no session of that name."),
    "session_expired": (410, False, "The session was not used for too long, or made room for others."),
    "session_busy": (409, True, "Another request holds the session."),
    "session_lease_lost": (409, True, "The request took too long to keep its session; nothing was written."),
    "model_mismatch": (
        409,
        False,
        "The memory was made by another model or version, or holds numbers that are not finite.",
    ),
    "memory_too_large": (413, False, "The memory has more bytes than may be kept."),
    "session_store_unavailable": (503, True, "The store of sessions does not answer."),
    "unknown_model": (404, False, "No model of that name is served."),
    "unknown_version": (404, False, "The repository holds no such version of the model."),
    "bundle_refused": (422, False, "The version must not be served; what was served before goes on."),
    "admin_key_needed": (403, False, "The key is not the admin key, and the route asks for it."),
    "not_found": (404, False, "There is no such path."),
    "upgrade_required": (426, False, "The path is a WebSocket's, and the request is none."),
    "foreign_origin": (403, False, "A page of another site asks, and the server is not told to let it."),
    "foreign_host": (403, False, "The Host header names another server than one that listens on this machine only."),
    "method_not_allowed": (405, False, "The path exists, the method does not."),
    "unsupported_frame": (415, False, "A binary WebSocket frame came where text is due, or the reverse."),
    "out_of_order": (409, False, "A WebSocket frame came when it makes no sense."),
    "slow_reader": (408, True, "The client read its stream too slowly and was ended."),
    "capacity_exceeded": (503, True, "As many requests run and wait as the model takes, or for as long."),
    "deadline_exceeded": (504, True, "The request took longer than it may."),
    "model_unavailable": (503, True, "The model's engine does not run."),
    "shutting_down": (503, True, "The server is shutting down: another one, or a later one, will answer."),
    "step_failed": (500, True, "The model failed on this request; others are not affected."),
    "missing_key": (401, False, "The request brings no API key, and the server asks for one."),
    "unknown_key": (401, False, "The API key is none of this server's, or was revoked."),
    "rate_limited": (429, True, "The key has sent as many requests as it may, for now."),
    "quota_exceeded": (429, True, "The key has used as many tokens as it may, for now."),
    "internal_error": (500, False, "A defect of the server."),
}
"""Of each code: its HTTP status, whether the same request may succeed later, and what it means."""


def status_of(outcome: str) -> int | None:
    """The HTTP status of how a request ended, where that is an error."""
    return next((status for code, (status, *_) in ERRORS.items() if code == outcome), None)


def close_code(code: ErrorCode) -> int:
    """What a WebSocket is closed with after an error: 4000 + status, or 1003 for a frame of the wrong kind."""
    return 1003 if code == "unsupported_frame" else 4000 + ERRORS[code][0]


class ServiceError(Exception):
    """An error that a client is told.

    Args:
        code: what happened.
        message: what was seen, what is allowed, what to do.
        retry_after_seconds: for the Retry-After header, at the earliest.
        param: the field of the request that is at fault, where it is one.
    """

    def __init__(
        self, code: ErrorCode, message: str, retry_after_seconds: int | None = None, *, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status, self.retryable, _ = ERRORS[code]
        self.retry_after_seconds = retry_after_seconds
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON shape of every error."""
        return {"error": {"code": self.code, "message": self.message, "retryable": self.retryable}}


class RequestError(ServiceError):
    """The request is at fault."""


class Unavailable(ServiceError):
    """The server is at fault or busy."""
