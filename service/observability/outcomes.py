"""How requests can end: what `carousel_requests_total` counts from 0 on.

A series that appears with its first event begins at 1, and rate() sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from carousel.service.errors import ERRORS, ErrorCode

OK = "ok"
CANCELLED = "cancelled"

BEFORE_A_MODEL: frozenset[ErrorCode] = frozenset(
    {
        "malformed_http", "head_too_large", "request_timeout", "body_too_large", "not_found", "method_not_allowed",
        "upgrade_required", "foreign_origin", "foreign_host", "missing_key", "unknown_key", "admin_key_needed",
        "rate_limited", "quota_exceeded", "shutting_down", "unknown_model", "unknown_version", "bundle_refused",
        "internal_error",
    }
)  # fmt: skip
"""Of requests that no route was found for, or no model."""

UNREAD: frozenset[ErrorCode] = frozenset(
    {"unknown_model", "malformed_json", "invalid_request", "body_too_large", "method_not_allowed", "upgrade_required"}
)
"""Of requests to a model's routes that name none, or none that is served."""

_NEVER_OF_A_MODEL: frozenset[ErrorCode] = BEFORE_A_MODEL - {
    "request_timeout", "body_too_large", "unknown_key", "rate_limited", "quota_exceeded", "shutting_down",
    "internal_error",
}  # fmt: skip

_OF_A_LOOK: frozenset[ErrorCode] = frozenset(
    {
        "internal_error", "wrong_task", "invalid_session_id", "unknown_session", "session_expired", "session_busy",
        "session_store_unavailable", "model_mismatch",
    }
)  # fmt: skip
"""Where no model runs."""

_RUNS: dict[str, tuple[str, ...]] = {
    "language": (
        "/v1/completions",
        "/v1/models/{model}/next-token",
        "/v1/models/{model}/score",
        "/v1/models/{model}/stream",
    ),
    "tracing": ("/v1/models/{model}/trace",),
    "captioning": (
        "/v1/models/{model}/captions",
        "/v1/models/{model}/captions/attention.svg",
        "/v1/models/{model}/stream",
    ),
}
_LOOKS: dict[str, tuple[str, ...]] = {"language": (), "captioning": (), "tracing": (
    "/v1/models/{model}/trace/{session}/mastery.svg",
)}  # fmt: skip
_LOOKS_AT_ANY = ("/v1/models/{model}", "/v1/models/{model}/sessions/{session}")


def outcomes_of(task: str) -> Iterator[tuple[str, str]]:
    """Endpoints of a model, each with all its outcomes."""
    for endpoint in _RUNS[task]:
        for outcome in (OK, CANCELLED, *(code for code in ERRORS if code not in _NEVER_OF_A_MODEL)):
            yield endpoint, outcome
    for endpoint in (*_LOOKS[task], *_LOOKS_AT_ANY):
        for outcome in (OK, CANCELLED, *(code for code in ERRORS if code in _OF_A_LOOK)):
            yield endpoint, outcome
    for endpoint in {one for other in _RUNS for one in (*_RUNS[other], *_LOOKS[other])} - {*_RUNS[task], *_LOOKS[task]}:
        yield endpoint, "wrong_task"


def endpoints() -> frozenset[str]:
    """Of all models."""
    return frozenset(endpoint for task in _RUNS for endpoint, _ in outcomes_of(task))
