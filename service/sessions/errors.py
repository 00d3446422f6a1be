"""What can be wrong with a session or a state token, and what HTTP status a client should see.

    SessionError
    ├── InvalidSessionId   422  the id cannot name a session
    ├── InvalidToken       400  forged, cut short, altered, or another tenant's
    ├── UnknownSession     404  there is none of that name (another tenant's looks the same)
    ├── ExpiredSession     410  there was one, and it was not used for too long or had to make room
    ├── SessionBusy        409  another request holds it; retryable
    ├── LeaseLost          409  this request held it for longer than it could keep it; nothing was written; retryable
    ├── ModelMismatch      409  the memory is another model's
    ├── MemoryTooLarge     413  the memory has more bytes than may be kept or signed
    └── StoreUnavailable   503  the store does not answer; retryable

Every message is one sentence: what was seen, what is allowed, what to do. InvalidMemory stands outside: it is what the
decoder makes of bad bytes, and whoever had them decoded knows which of the above that is.
"""

from __future__ import annotations

from typing import ClassVar

from carousel.service.errors import ErrorCode


class SessionError(Exception):
    """Root of what a client is told.

    `code` is stable, `status` the HTTP status, `retryable` whether the same request may succeed later, and
    `retry_after_seconds` when.
    """

    code: ClassVar[ErrorCode]
    status: ClassVar[int]
    retryable: ClassVar[bool] = False
    retry_after_seconds: ClassVar[int | None] = None


class InvalidSessionId(SessionError):
    """The id cannot name a session."""

    code: ClassVar[ErrorCode] = "invalid_session_id"
    status = 422


class InvalidToken(SessionError):
    """The state token was not made by this service for this tenant, or is not whole."""

    code: ClassVar[ErrorCode] = "invalid_state_token"
    status = 400


class UnknownSession(SessionError):
    """There is no session of that name."""

    code: ClassVar[ErrorCode] = "unknown_session"
    status = 404


class ExpiredSession(SessionError):
    """There was a session of that name."""

    code: ClassVar[ErrorCode] = "session_expired"
    status = 410


class SessionBusy(SessionError):
    """Another request holds the session."""

    code: ClassVar[ErrorCode] = "session_busy"
    status = 409
    retryable = True
    retry_after_seconds = 1


class LeaseLost(SessionError):
    """This request no longer holds the session, so what it computed was not written."""

    code: ClassVar[ErrorCode] = "session_lease_lost"
    status = 409
    retryable = True
    retry_after_seconds = 1


class ModelMismatch(SessionError):
    """The memory was made by another model than the one that is to go on from it."""

    code: ClassVar[ErrorCode] = "model_mismatch"
    status = 409


class MemoryTooLarge(SessionError):
    """The memory has more bytes than may be kept."""

    code: ClassVar[ErrorCode] = "memory_too_large"
    status = 413


class StoreUnavailable(SessionError):
    """The store of sessions does not answer."""

    code: ClassVar[ErrorCode] = "session_store_unavailable"
    status = 503
    retryable = True
    retry_after_seconds = 1


class InvalidMemory(ValueError):
    """Bytes that are no memory."""
