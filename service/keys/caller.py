"""Who sends a request: a key's name, its tenant, and what it has used of its limits.

    current_caller().tenant

is whose sessions, state tokens and caches the running request has, over HTTP and WebSocket alike: the context of the
task that serves it (contextvars), which every task and thread begun by it inherits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar

from carousel.service.errors import ErrorCode, RequestError, ServiceError
from carousel.service.keys.bucket import Bucket
from carousel.service.keys.key_file import Key, Limits

ANONYMOUS = "anonymous"
"""The tenant without API keys: every caller is the same one."""


class Caller:
    """One key in use.

    Args:
        key: its line; None is everybody, where no key is asked for.
        clock: seconds; never goes back.
        refresh: called before it is asked whether the key still holds.
    """

    def __init__(
        self,
        key: Key | None,
        clock: Callable[[], float] = time.monotonic,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = None if key is None else key.name
        self.tenant = ANONYMOUS if key is None else key.tenant
        self._clock = clock
        self._refresh = refresh
        self.revoked = False
        """Whether the key has left the file, which a socket that is open may learn only now."""
        self._requests: Bucket | None = None
        self._tokens: dict[str, Bucket] = {}
        if key is not None:
            self.limit(key.limits)

    def limit(self, limits: Limits) -> None:
        """Set the limits. What was used so far stays used."""
        now = self._clock()
        before, self._requests = self._requests, None
        if limits.requests_per_second is not None:
            burst = limits.burst or max(1.0, limits.requests_per_second)
            self._requests = Bucket(limits.requests_per_second, burst, now)
            if before is not None:
                self._requests.inherit(before)
        used, self._tokens = self._tokens, {}
        for period, seconds, most in (("minute", 60, limits.tokens_per_minute), ("day", 86_400, limits.tokens_per_day)):
            if most is not None:
                self._tokens[period] = Bucket(most / seconds, most, now)
                if period in used:
                    self._tokens[period].inherit(used[period])

    def admit(self, *, runs_model: bool = True) -> None:
        """Count one request, before anything is done for it, or refuse it.

        Args:
            runs_model: whether it will spend tokens.

        Raises:
            RequestError: unknown_key, where the key was revoked; rate_limited; quota_exceeded.
        """
        self._refresh()
        if self.revoked:
            raise RequestError("unknown_key", f"the key {self.name} was revoked; ask for another one")
        now = self._clock()
        requests = self._requests
        if requests is not None and (wait := requests.wait_seconds(1, now)):
            raise self._refused(
                "rate_limited",
                f"has sent its requests; allowed are {requests.rate:,.12g} a second and {requests.capacity:,.12g} at "
                "once",
                wait,
            )
        if runs_model:
            self.check_quota()
        if requests is not None:
            requests.take(1, now)

    def check_quota(self) -> None:
        """Hold that there is a token left to spend.

        Raises:
            RequestError: quota_exceeded.
        """
        now = self._clock()
        wait, slowest = 0.0, ""
        for period, tokens in self._tokens.items():
            longer = tokens.wait_seconds(min(1, tokens.capacity), now)
            if longer > wait:
                wait, slowest = longer, period
        if wait:
            most = self._tokens[slowest].capacity
            raise self._refused(
                "quota_exceeded",
                f"has used its tokens; allowed are {most:,.12g} a {slowest}, which come back evenly",
                wait,
            )

    @property
    def metered(self) -> bool:
        """Whether anybody counts its tokens."""
        return bool(self._tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens that a model took in or gave out."""
        now = self._clock()
        for bucket in self._tokens.values():
            bucket.take(tokens, now)

    def _refused(self, code: ErrorCode, what: str, wait: float) -> ServiceError:
        seconds = math.ceil(wait)
        return RequestError(code, f"the key {self.name} {what}; try again in {seconds:,} s", seconds)


EVERYBODY = Caller(None)

CALLER: ContextVar[Caller] = ContextVar("caller", default=EVERYBODY)


def current_caller() -> Caller:
    """Who sent the request that is running."""
    return CALLER.get()
