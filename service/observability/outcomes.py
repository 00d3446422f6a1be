"""How requests can end: what `carousel_requests_total` counts from 0 on.

A series that appears with its first event begins at 1, and rate() sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

_LOOKS_AT_ANY = ("/v1/models/{model}", "/v1/models/{model}/sessions/{session}")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The routes of one task."""

    runs: frozenset[str] = frozenset()
    """Where a model runs."""
    looks: frozenset[str] = frozenset()
    """Where only what it left is looked at."""


class Outcomes:
    """How requests to models can end.

    Args:
        tasks: the routes of each task, by its name.
        common: those of any model.
    """

    def __init__(self, tasks: Mapping[str, Endpoints], common: Endpoints = Endpoints()) -> None:
        self._tasks = tasks
        self._common = common
        self._own = frozenset().union(*(task.runs | task.looks for task in tasks.values()))

    @property
    def endpoints(self) -> frozenset[str]:
        """Of all models."""
        common = self._common.runs | self._common.looks
        return self._own | common | frozenset(_LOOKS_AT_ANY) if self._tasks else frozenset()

    def of(self, task: str) -> Iterator[tuple[str, str]]:
        """Endpoints, each with all the outcomes that it has for a model of that task."""
        own = self._tasks.get(task, Endpoints())
        for endpoint in own.runs | self._common.runs:
            for outcome in (OK, CANCELLED, *(code for code in ERRORS if code not in _NEVER_OF_A_MODEL)):
                yield endpoint, outcome
        for endpoint in (*own.looks, *self._common.looks, *_LOOKS_AT_ANY):
            for outcome in (OK, CANCELLED, *(code for code in ERRORS if code in _OF_A_LOOK)):
                yield endpoint, outcome
        for endpoint in self._own - own.runs - own.looks:
            yield endpoint, "wrong_task"
