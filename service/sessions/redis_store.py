"""Sessions in Redis: shared by every process that serves, and kept over their restarts.

Over a restart of Redis itself they are kept as far as Redis persists (README: "Redis"). Redis forgets what expires; to
bound what it keeps, give it `maxmemory` and the policy `volatile-lru`: every key here has a time to live.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Any, ClassVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from carousel.service.sessions import redis_scripts
from carousel.service.sessions.errors import SessionError, StoreUnavailable
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.refusals import busy, expired, lost, unknown
from carousel.service.sessions.store import Kept, Lease, OnEvicted, Retention, Writing, not_counted

logger = logging.getLogger("carousel.sessions")

TOKEN_BYTES = 16

CONNECTION_WAIT_SECONDS = 5.0
"""Longer than an answer may take: a burst of a few thousand requests is no outage of Redis."""

_PROBE = SessionKey("", "", "probe")
"""Nobody's session: every tenant and every model has a name."""

_REFUSALS = {"busy": busy, "expired": expired, "unknown": unknown, "lost": lost}


class RedisSessionStore:
    """A SessionStore over one Redis server. Connects when first used, and again whenever it has to.

    Args:
        url: redis://, rediss:// or unix://, with user, password and database as Redis clients take them.
        retention: how long and how much it keeps.
        on_evicted: called with `deleted` for each session deleted through this store. What ends by itself ends inside
            Redis, which counts it (expired_keys, evicted_keys of INFO).
        timeout_seconds: how long to wait for a new connection, and for an answer, before trying once more.
        max_connections: connections at once; further calls wait CONNECTION_WAIT_SECONDS for one.

    Raises:
        ValueError: no such URL.
    """

    waits: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        retention: Retention,
        *,
        on_evicted: OnEvicted = not_counted,
        timeout_seconds: float = 1.0,
        max_connections: int = 32,
    ) -> None:
        self._retention = retention
        self._on_evicted = on_evicted
        self._reachable = True
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=CONNECTION_WAIT_SECONDS,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # The scripts bear being sent twice, so a connection that broke while idle costs no request.
            retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), retries=1),
        )
        options = pool.connection_kwargs
        self._address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        """For the log: without what the URL may hold of names and passwords."""
        self._redis = Redis.from_pool(pool)
        self._acquire = self._redis.register_script(redis_scripts.ACQUIRE)
        self._renew = self._redis.register_script(redis_scripts.RENEW)
        self._commit = self._redis.register_script(redis_scripts.COMMIT)
        self._release = self._redis.register_script(redis_scripts.RELEASE)
        self._peek = self._redis.register_script(redis_scripts.PEEK)
        self._delete = self._redis.register_script(redis_scripts.DELETE)
        self._lease_ms = _milliseconds(retention.lease_seconds)
        self._ttl_ms = _milliseconds(retention.ttl_seconds)
        self._grave_ms = _milliseconds(retention.ttl_seconds + retention.tombstone_seconds)

    @property
    def retention(self) -> Retention:
        """How long and how much it keeps."""
        return self._retention

    async def acquire(self, key: SessionKey) -> Lease:
        """See SessionStore."""
        token = secrets.token_bytes(TOKEN_BYTES)
        _, memory = await self._run(self._acquire, [key], token, self._lease_ms, self._ttl_ms, self._grave_ms)
        return Lease(key, token.hex(), None if memory is None else memory[TOKEN_BYTES:])

    async def renew(self, lease: Lease) -> None:
        """See SessionStore."""
        token = bytes.fromhex(lease.token)
        await self._run(self._renew, [lease.key], token, self._lease_ms, self._ttl_ms, self._grave_ms)

    async def commit(self, writings: Sequence[Writing]) -> None:
        """See SessionStore."""
        self._retention.check_sizes(writings)
        max_marks = self._retention.max_marks
        args: list[bytes | int] = [self._ttl_ms, self._grave_ms, max_marks]
        for one in writings:
            token, marks = bytes.fromhex(one.lease.token), one.marks[-max_marks:]
            args += [token, token + one.value, len(marks), *marks]
        await self._run(self._commit, [one.lease.key for one in writings], *args)

    async def release(self, lease: Lease) -> None:
        """See SessionStore."""
        await self._run(self._release, [lease.key], bytes.fromhex(lease.token))

    async def peek(self, key: SessionKey, *, trail: bool = False) -> Kept:
        """See SessionStore."""
        _, memory, left_ms, marks = await self._run(self._peek, [key], int(trail))
        return Kept(memory[TOKEN_BYTES:], left_ms / 1000, tuple(marks))

    async def delete(self, key: SessionKey) -> None:
        """See SessionStore."""
        _, memories = await self._run(self._delete, [key])
        if memories:
            self._on_evicted("deleted")

    async def check(self) -> None:
        """See SessionStore. Takes a lease and lets it go, which asks for all that a request does: also for writing."""
        try:
            await self.release(await self.acquire(_PROBE))
        except StoreUnavailable:  # which is logged
            return
        except SessionError:  # another replica that starts has it
            pass
        logger.info("sessions are kept in Redis at %s", self._address)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _run(self, script: Any, keys: Sequence[SessionKey], *args: bytes | int) -> list[Any]:
        """What a script answers, unless it refuses.

        Raises:
            StoreUnavailable, and what the scripts refuse with
        """
        slots = [f"carousel:session:{{{key.digest}}}" for key in keys]
        parts = ("memory", "trail", "grave", "lease")
        try:
            answer: list[Any] = await script(keys=[f"{slot}:{part}" for slot in slots for part in parts], args=args)
        except (RedisError, OSError) as error:
            if self._reachable:
                self._reachable = False
                logger.error(
                    "Redis at %s does not serve sessions, and every request with one gets a 503 until it does: %s: %s",
                    *(self._address, type(error).__name__, error),
                )
            raise StoreUnavailable(
                f"the store of sessions does not answer ({type(error).__name__}); send the request again later"
            ) from error
        if not self._reachable:
            self._reachable = True
            logger.warning("Redis at %s serves sessions again", self._address)
        refusal = _REFUSALS.get(answer[0].decode())
        if refusal is not None:
            raise refusal(keys[answer[1] if len(answer) > 1 else 0])
        return answer


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
