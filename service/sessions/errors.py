"""What can be wrong with a session or a state token: a class each, for who acts on one, and its code.

    SessionError
    ├── InvalidSessionId  the id cannot name a session
    ├── InvalidToken      forged, cut short, altered, or another tenant's
    ├── UnknownSession    there is none of that name (another tenant's looks the same)
    ├── ExpiredSession    there was one, and it was not used for too long or had to make room
    ├── SessionBusy       another request holds it; retryable
    ├── LeaseLost         this request held it for longer than it could keep it; nothing was written; retryable
    ├── ModelMismatch     the memory is another model's
    ├── MemoryTooLarge    the memory has more bytes than may be kept or signed
    └── StoreUnavailable  the store does not answer; retryable

Every message is one sentence: what was seen, what is allowed, what to do. InvalidMemory stands outside: it is what the
decoder makes of bad bytes, and whoever had them decoded knows which of the above that is.
"""

from __future__ import annotations

from typing import ClassVar

from carousel.service.errors import ERRORS, ErrorCode, ServiceError

RETRY_AFTER_SECONDS = 1
"""Of what may succeed later."""


class SessionError(ServiceError):
    """Root of what a client is told."""

    of: ClassVar[ErrorCode]
    """The class's code."""

    def __init__(self, message: str) -> None:
        _, retryable, _ = ERRORS[self.of]
        super().__init__(self.of, message, RETRY_AFTER_SECONDS if retryable else None)


class InvalidSessionId(SessionError):
    """The id cannot name a session."""

    of = "invalid_session_id"


class InvalidToken(SessionError):
    """The state token was not made by this service for this tenant, or is not whole."""

    of = "invalid_state_token"


class UnknownSession(SessionError):
    """There is no session of that name."""

    of = "unknown_session"


class ExpiredSession(SessionError):
    """There was a session of that name."""

    of = "session_expired"


class SessionBusy(SessionError):
    """Another request holds the session."""

    of = "session_busy"


class LeaseLost(SessionError):
    """This request no longer holds the session, so what it computed was not written."""

    of = "session_lease_lost"


class ModelMismatch(SessionError):
    """The memory was made by another model than the one that is to go on from it."""

    of = "model_mismatch"


class MemoryTooLarge(SessionError):
    """The memory has more bytes than may be kept."""

    of = "memory_too_large"


class StoreUnavailable(SessionError):
    """The store of sessions does not answer."""

    of = "session_store_unavailable"


class InvalidMemory(ValueError):
    """Bytes that are no memory."""
