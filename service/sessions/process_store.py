"""Sessions in the memory of this process: fast, bounded, and gone when it ends.

Used from one event loop. No method waits for anything, so each is atomic as it stands.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.refusals import busy, expired, lost, unknown
from carousel.service.sessions.store import EvictionReason, Kept, Lease, OnEvicted, Retention, Writing, not_counted

ENTRY_BYTES = 1152
"""What a session costs beside its bytes: digest, entry, trail and places in dictionaries (CPython 3.11, rounded up)."""

MARK_BYTES = 48
"""What a mark costs beside its bytes."""

SWEEP = 64
"""Overdue entries that one call clears away at most, so that no request pays for a million that end together."""


@dataclass(slots=True)
class _Entry:
    value: bytes = b""
    expires_at: float = 0.0
    trail: deque[bytes] = field(default_factory=deque)
    size: int = ENTRY_BYTES
    """Kept as the parts change: to add a long trail up at every commit would make a long history dear."""

    def write(self, value: bytes, marks: Sequence[bytes], max_marks: int) -> None:
        self.size += len(value) - len(self.value)
        self.value = value
        for mark in marks[-max_marks:]:
            self.trail.append(mark)
            self.size += MARK_BYTES + len(mark)
        while len(self.trail) > max_marks:
            self.size -= MARK_BYTES + len(self.trail.popleft())


class ProcessSessionStore:
    """A SessionStore whose least recently used sessions make room when there are too many.

    Args:
        retention: how long and how much it keeps.
        max_sessions: sessions at once, and tombstones at once.
        max_bytes: what all sessions together may take. The one just written stays, whatever its size.
        on_evicted: called with the reason for each session that goes.
        clock: seconds that never go back.
    """

    waits: ClassVar[bool] = False

    def __init__(
        self,
        retention: Retention,
        *,
        max_sessions: int = 100_000,
        max_bytes: int = 1 << 30,
        on_evicted: OnEvicted = not_counted,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention = retention
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._on_evicted = on_evicted
        self._clock = clock
        self._tokens = itertools.count(1)
        # Each is in the order of last use, and all sessions live equally long: the first is also the next to expire.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._tombstones: OrderedDict[str, float] = OrderedDict()
        self._leases: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._bytes = 0

    @property
    def retention(self) -> Retention:
        """How long and how much it keeps."""
        return self._retention

    def __len__(self) -> int:
        """Sessions kept."""
        self._sweep()
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What they take."""
        return self._bytes

    async def acquire(self, key: SessionKey) -> Lease:
        """See SessionStore."""
        self._sweep()
        digest = key.digest
        if self._holder(digest) is not None:
            raise busy(key)
        entry = self._find(digest)
        if entry is None and self._buried(digest):
            raise expired(key)
        token = str(next(self._tokens))
        self._hold(digest, token)
        self._touch(digest)
        return Lease(key, token, None if entry is None else entry.value)

    async def renew(self, lease: Lease) -> None:
        """See SessionStore."""
        digest = lease.key.digest
        if self._holder(digest) != lease.token:
            raise lost(lease.key)
        self._hold(digest, lease.token)
        self._touch(digest)

    async def commit(self, writings: Sequence[Writing]) -> None:
        """See SessionStore."""
        self._retention.check_sizes(writings)
        digests = [one.lease.key.digest for one in writings]
        for digest, one in zip(digests, writings, strict=True):
            if self._holder(digest) != one.lease.token:
                raise lost(one.lease.key)
        for digest, one in zip(digests, writings, strict=True):
            self._write(digest, one)
        while len(self._entries) > 1 and (len(self._entries) > self._max_sessions or self._bytes > self._max_bytes):
            self._evict(next(iter(self._entries)), "lru")

    async def release(self, lease: Lease) -> None:
        """See SessionStore."""
        digest = lease.key.digest
        if self._holder(digest) == lease.token:
            del self._leases[digest]

    async def peek(self, key: SessionKey, *, trail: bool = False) -> Kept:
        """See SessionStore."""
        digest = key.digest
        entry = self._find(digest)
        if entry is None:
            raise expired(key) if self._buried(digest) else unknown(key)
        return Kept(entry.value, entry.expires_at - self._clock(), tuple(entry.trail) if trail else ())

    async def delete(self, key: SessionKey) -> None:
        """See SessionStore."""
        digest = key.digest
        if self._holder(digest) is not None:
            raise busy(key)
        if self._find(digest) is not None:
            self._evict(digest, "deleted")
        elif self._buried(digest):
            del self._tombstones[digest]
        else:
            raise unknown(key)

    async def check(self) -> None:
        """There is nothing that could be away."""

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _write(self, digest: str, writing: Writing) -> None:
        del self._leases[digest]
        entry = self._find(digest)
        self._tombstones.pop(digest, None)
        if entry is None:
            entry = self._entries[digest] = _Entry()
        else:
            self._bytes -= entry.size
        entry.write(writing.value, writing.marks, self._retention.max_marks)
        self._bytes += entry.size
        self._touch(digest)

    def _holder(self, digest: str) -> str | None:
        """The token of the lease that holds."""
        token, expires_at = self._leases.get(digest, (None, 0.0))
        return token if expires_at > self._clock() else None

    def _hold(self, digest: str, token: str) -> None:
        self._leases[digest] = (token, self._clock() + self._retention.lease_seconds)
        self._leases.move_to_end(digest)

    def _find(self, digest: str) -> _Entry | None:
        """The session, unless it has expired."""
        entry = self._entries.get(digest)
        if entry is not None and entry.expires_at <= self._clock():
            self._evict(digest, "ttl")
            return None
        return entry

    def _buried(self, digest: str) -> bool:
        return self._tombstones.get(digest, 0.0) > self._clock()

    def _touch(self, digest: str) -> None:
        entry = self._entries.get(digest)
        if entry is not None:
            entry.expires_at = self._clock() + self._retention.ttl_seconds
            self._entries.move_to_end(digest)

    def _evict(self, digest: str, reason: EvictionReason) -> None:
        self._bytes -= self._entries.pop(digest).size
        if reason != "deleted":
            self._tombstones[digest] = self._clock() + self._retention.tombstone_seconds
            self._tombstones.move_to_end(digest)
            if len(self._tombstones) > self._max_sessions:
                self._tombstones.popitem(last=False)
        self._on_evicted(reason)

    def _sweep(self) -> None:
        """Clear away what is overdue; whoever asks for one key looks at its time anyway."""
        now = self._clock()
        for _ in range(SWEEP):
            digest, entry = next(iter(self._entries.items()), (None, None))
            if digest is None or entry is None or entry.expires_at > now:
                break
            self._evict(digest, "ttl")
        for _ in range(SWEEP):
            if not self._tombstones or next(iter(self._tombstones.values())) > now:
                break
            self._tombstones.popitem(last=False)
        for _ in range(SWEEP):
            if not self._leases or next(iter(self._leases.values()))[1] > now:
                break
            self._leases.popitem(last=False)
