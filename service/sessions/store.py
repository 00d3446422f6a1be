"""Where sessions are kept: bytes under a key, held by one request at a time.

A request takes a **lease** on its session, computes, and commits the new bytes. The lease is what makes it safe:

- while one request holds it, others get SessionBusy instead of waiting: what they would go on from is about to change;
- it ends by itself, so a crashed process does not lock a learner out for longer than `lease_seconds`;
- a commit names its lease, and store and check are one atomic step: who has lost the lease, whether by a pause or by a
  restart of the store, gets LeaseLost and cannot overwrite what a later holder wrote;
- a commit may name several, those of a request for many learners: it is one step still, which writes all or none.

Beside its bytes a session has a **trail**: a list of small marks that a commit appends to and that only `peek` reads.
A history belongs there. It is never read or rewritten for the next answer, so that one costs the same however long the
history; the oldest marks go when there are more than `max_marks`.

A session lives for `ttl_seconds` after its last use (acquire, renew, commit). What is gone because of that, or because
it had to make room, is remembered as a tombstone for `tombstone_seconds`: ExpiredSession, rather than a silent start
from nothing. Deleting a session, or its tombstone, makes its id free again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from carousel.service.sessions.errors import MemoryTooLarge
from carousel.service.sessions.key import SessionKey

EvictionReason = Literal["ttl", "lru", "deleted"]
OnEvicted = Callable[[EvictionReason], None]


def not_counted(reason: EvictionReason) -> None:
    """The OnEvicted of who keeps no figures."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long and how much a store keeps.

    Args:
        ttl_seconds: life of a session after its last use.
        tombstone_seconds: how long after that it is still known to have been there.
        lease_seconds: how long a request holds a session without a sign of life.
        max_marks: marks that a trail keeps, at least 1.
        max_value_bytes: longest value, and longest mark.
    """

    ttl_seconds: float = 3600.0
    tombstone_seconds: float = 86400.0
    lease_seconds: float = 10.0
    max_marks: int = 1000
    max_value_bytes: int = 16 * 1024 * 1024

    def check_sizes(self, writings: Iterable[Writing]) -> None:
        """Raises MemoryTooLarge."""
        self.check_size(max((len(piece) for one in writings for piece in (one.value, *one.marks)), default=0))

    def check_size(self, size: int) -> None:
        """Hold that so many bytes may be kept in one piece. Raises MemoryTooLarge."""
        if size > self.max_value_bytes:
            raise MemoryTooLarge(
                f"a session would keep {size:,} bytes in one piece, and at most {self.max_value_bytes:,} are kept "
                "(CAROUSEL_MAX_SESSION_BYTES): ask without a session, or have that raised"
            )


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a session, and what lay there when it was taken: None where the session is new.

    `token` differs from that of every other lease, ever.
    """

    key: SessionKey
    token: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Writing:
    """What to write to one session: its new bytes, and the marks to append to its trail."""

    lease: Lease
    value: bytes
    marks: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a session holds."""

    value: bytes
    expires_in_seconds: float
    trail: tuple[bytes, ...]


class SessionStore(Protocol):
    """Every method may raise StoreUnavailable. A key of another tenant behaves like one that was never used."""

    waits: ClassVar[bool]
    """Whether a method may wait, and so be cancelled, half-way."""

    @property
    def retention(self) -> Retention:
        """How long and how much it keeps."""
        ...

    async def acquire(self, key: SessionKey) -> Lease:
        """Take the lease, and count as a use.

        Raises:
            SessionBusy: somebody has it.
            ExpiredSession: there is only a tombstone.
        """
        ...

    async def renew(self, lease: Lease) -> None:
        """Hold a lease for another `lease_seconds`, and count as a use.

        Raises:
            LeaseLost
        """
        ...

    async def commit(self, writings: Sequence[Writing]) -> None:
        """Replace the bytes of every session (or make it), append to its trail, and end its lease: all, or none.

        Raises:
            LeaseLost: one of them has ended; nothing was written, and the others hold.
            MemoryTooLarge: nothing was written, and the leases hold.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """End a lease and leave the session as it is. Does nothing where the lease has ended already."""
        ...

    async def peek(self, key: SessionKey, *, trail: bool = False) -> Kept:
        """Look without taking the lease and without counting as a use; the trail is read only where asked for.

        Raises:
            UnknownSession, ExpiredSession
        """
        ...

    async def delete(self, key: SessionKey) -> None:
        """Forget a session, or the tombstone of one.

        Raises:
            UnknownSession: there is neither.
            SessionBusy: a request holds it and would write it again.
        """
        ...

    async def check(self) -> None:
        """Tell the log whether sessions can be kept. Raises nothing: requests will be told."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
