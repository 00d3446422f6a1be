"""The sentences in which both stores refuse, so that a client cannot tell where its session is kept."""

from __future__ import annotations

from carousel.service.sessions.errors import ExpiredSession, LeaseLost, SessionBusy, UnknownSession
from carousel.service.sessions.key import SessionKey


def busy(key: SessionKey) -> SessionBusy:
    """Another request has the lease."""
    return SessionBusy(
        f"session {key.session!r} is held by another request; send one at a time, and this one again after that"
    )


def expired(key: SessionKey) -> ExpiredSession:
    """There is a tombstone."""
    return ExpiredSession(
        f"session {key.session!r} was not used for too long, or made room for others, and is gone; "
        "delete it to begin again under this id, or take another id"
    )


def unknown(key: SessionKey) -> UnknownSession:
    """There is nothing."""
    return UnknownSession(f"{key.model} keeps no session {key.session!r} for this caller")


def lost(key: SessionKey) -> LeaseLost:
    """The lease has ended."""
    return LeaseLost(
        f"session {key.session!r} was held for longer than this request could hold it, and nothing was written; "
        "send the request again"
    )
