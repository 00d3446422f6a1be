"""Sessions as a request sees them: open one, go on from its memory, commit the new one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from carousel.service.sessions.codec import decode, encode
from carousel.service.sessions.errors import (
    ExpiredSession,
    InvalidMemory,
    LeaseLost,
    ModelMismatch,
    StoreUnavailable,
    UnknownSession,
)
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.memory import Memory, ModelIdentity, check_fit
from carousel.service.sessions.store import Lease, SessionStore, Writing

T = TypeVar("T")
Work = Coroutine[Any, Any, T]

RENEWALS_PER_LEASE = 3
"""How often a lease is renewed in its time: two renewals may fail before it is lost."""


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a session holds, for who only looks."""

    memory: Memory
    expires_in_seconds: float
    trail: tuple[bytes, ...]


class OpenSession:
    """A session that this request holds. `memory` is None where it is new."""

    def __init__(self, lease: Lease, memory: Memory | None) -> None:
        self.lease = lease
        self.memory = memory
        self.committed = False


@dataclass(frozen=True, slots=True)
class Change:
    """What a request leaves behind: a session's new memory, and what to append to its trail."""

    session: OpenSession
    memory: Memory
    marks: Sequence[bytes] = ()


class Sessions:
    """Memories in a store, checked against the model that is to go on from them.

    A request whose client leaves is cancelled wherever it happens to wait. So what takes and gives back a lease runs in
    tasks of its own, which such a cancellation does not reach: no lease is left lying until it expires. (A store that
    never waits gives one without.)
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def open(self, key: SessionKey, model: ModelIdentity, *, anew: bool = False) -> AsyncIterator[OpenSession]:
        """Hold a session for the time of a `with` block, however long; leaving without a commit changes nothing.

        Args:
            key: which.
            model: that is to go on from it.
            anew: whether it begins again, whatever it holds, or is gone.

        Raises:
            SessionBusy, ExpiredSession, ModelMismatch, StoreUnavailable
        """
        try:
            lease = await self._acquire(key)
        except ExpiredSession:
            if not anew:
                raise
            with contextlib.suppress(UnknownSession):  # a tombstone, which may have ended meanwhile
                await self._store.delete(key)
            lease = await self._acquire(key)
        heartbeat = _Heartbeat(self._store, lease, self._spawn)
        session: OpenSession | None = None
        try:
            session = OpenSession(lease, None if anew else _read(key, lease.value, model))
            yield session
        finally:
            heartbeat.stop()
            if session is None or not session.committed:
                await asyncio.shield(self._spawn(self._release(lease)))

    def check_size(self, size: int) -> None:
        """Hold that a memory of so many bytes can be kept. Raises MemoryTooLarge."""
        self._store.retention.check_size(size)

    async def commit(self, *changes: Change) -> None:
        """Write the new memories and let the sessions go: all, or none is written. At most once for a session.

        Raises:
            LeaseLost, MemoryTooLarge, StoreUnavailable: after the last, whether they were written is unknown.
        """
        assert not any(change.session.committed for change in changes)
        if not changes:
            return
        await self._store.commit(
            [Writing(change.session.lease, encode(change.memory), change.marks) for change in changes]
        )
        for change in changes:
            change.session.committed = True

    async def look(self, key: SessionKey, *, trail: bool = False) -> SessionView:
        """What a session holds, whichever version of the model made it.

        Raises:
            UnknownSession, ExpiredSession, ModelMismatch, StoreUnavailable
        """
        kept = await self._store.peek(key, trail=trail)
        memory = _read(key, kept.value, None)
        assert memory is not None
        return SessionView(memory, kept.expires_in_seconds, kept.trail)

    async def delete(self, key: SessionKey) -> None:
        """Forget a session.

        Raises:
            UnknownSession, SessionBusy, StoreUnavailable
        """
        await self._store.delete(key)

    async def check(self) -> None:
        """See SessionStore."""
        await self._store.check()

    async def close(self) -> None:
        """Wait for leases being given back, and close the store."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()

    async def _acquire(self, key: SessionKey) -> Lease:
        if not self._store.waits:
            return await self._store.acquire(key)
        acquiring = self._spawn(self._store.acquire(key))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            acquiring.add_done_callback(self._give_back)
            raise

    def _give_back(self, acquiring: asyncio.Task[Lease]) -> None:
        if not acquiring.cancelled() and acquiring.exception() is None:
            self._spawn(self._release(acquiring.result()))

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(StoreUnavailable):  # then it ends by itself
            await self._store.release(lease)

    def _spawn(self, work: Work[T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Heartbeat:
    """Renews a lease while it is held. To a request that is done before the first beat it costs one timer."""

    def __init__(self, store: SessionStore, lease: Lease, spawn: Callable[[Work[None]], asyncio.Task[None]]) -> None:
        self._store = store
        self._lease = lease
        self._spawn = spawn
        self._held = True
        self._schedule()

    def stop(self) -> None:
        self._held = False
        self._timer.cancel()

    def _schedule(self) -> None:
        seconds = self._store.retention.lease_seconds / RENEWALS_PER_LEASE
        self._timer = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self._renew()))

    async def _renew(self) -> None:
        try:
            await self._store.renew(self._lease)
        except LeaseLost:
            return  # the commit will be told
        except StoreUnavailable:
            pass  # it may be back before the lease ends
        if self._held:
            self._schedule()


def _read(key: SessionKey, value: bytes | None, model: ModelIdentity | None) -> Memory | None:
    if value is None:
        return None
    try:
        memory = decode(value)
    except InvalidMemory as error:
        raise ModelMismatch(
            f"session {key.session!r} was written by a release of this service with another format ({error}); "
            "delete it to begin again under this id, or take another id"
        ) from None
    if model is not None:
        check_fit(memory, model)
    return memory
