"""One count, one duration and one log line per HTTP request, whatever its end.

Of what a client sent the line has the method and nothing else: no query, no header, no body, and in place of the path,
which may hold a learner's id, the route's template. Only a path that no route has is told, escaped and cut.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carousel.service.engine.timeline import Timeline
from carousel.service.errors import ERRORS, close_code
from carousel.service.keys.caller import Caller, current_caller
from carousel.service.observability.metrics import UNKNOWN, Metrics
from carousel.service.observability.outcomes import CANCELLED, OK

logger = logging.getLogger("carousel.requests")

SCOPE_KEY = "carousel.request"
SOCKET = "WS"
"""In place of a method, of what runs on a WebSocket."""

MAX_PATH_CHARACTERS = 200


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request so far; handlers fill it in."""

    request_id: str = field(default_factory=lambda: f"{random.getrandbits(128):032x}")
    """Tells requests apart, and is no secret: it need not be asked of the kernel."""
    model: str = UNKNOWN
    version: str = UNKNOWN
    endpoint: str = UNKNOWN
    outcome: str = OK
    started_at: float = field(default_factory=time.perf_counter)
    caller: Caller = field(default_factory=current_caller)
    status: int | None = None
    """Of the answer, once one has begun: then it can no longer be another. Not of a socket's generations."""
    method: str | None = None
    """SOCKET for a socket's; None for what never came to be a request."""
    client: str | None = None
    """Who the connection is with: an address. Behind a proxy that is the proxy's, as headers may say anything."""
    path: str | None = None
    """What was asked for. Told only where it is no route's."""
    route: str = UNKNOWN
    """The template of the path's route, of what was refused before it came there."""
    sequences: list[Timeline] = field(default_factory=list)
    """What engines ran for it, where spans are made."""
    trace_id: str = ""
    """Of its spans, where they are made."""


class Tracer(Protocol):
    """Makes the spans of requests that have ended."""

    def ended(self, record: RequestRecord, seconds: float) -> str:
        """Make those of this one, which took so long; gives the id of their trace."""
        ...


TRACER: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""Of the request, or the socket, that the running task serves."""

WATCHED: ContextVar[list[Timeline] | None] = ContextVar("watched", default=None)
"""Where the requests that the running task hands to engines are noted."""


def watch(record: RequestRecord) -> None:
    """Note in a record what the running task hands to engines from now on, if spans are made of it."""
    if TRACER.get() is not None:
        WATCHED.set(record.sequences)


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record = scope.get(SCOPE_KEY)
    if record is None:
        record = scope[SCOPE_KEY] = _note_origin(RequestRecord(), scope)
    assert isinstance(record, RequestRecord)
    return record


def socket_record(
    scope: Scope, outcome: str, endpoint: str = UNKNOWN, model: str = UNKNOWN, version: str = UNKNOWN
) -> RequestRecord:
    """The record of something on a socket: a generation, or a refusal."""
    route = _template(scope) if endpoint == UNKNOWN else endpoint
    return _note_origin(
        RequestRecord(outcome=outcome, endpoint=endpoint, route=route, model=model, version=version), scope
    )


def _note_origin(record: RequestRecord, scope: Scope) -> RequestRecord:
    client = scope.get("client")
    record.client = None if client is None else str(client[0])
    record.method, record.path = scope.get("method", SOCKET), scope.get("path")
    return record


def _template(scope: Scope) -> str:
    """Of the route that would have been taken."""
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            return str(getattr(route, "path", UNKNOWN))
    return UNKNOWN


def finish(metrics: Metrics, record: RequestRecord) -> None:
    """Count a request that has ended, and log it."""
    seconds = time.perf_counter() - record.started_at
    metrics.request_ended(record.model, record.version, record.endpoint, record.outcome, seconds)
    tracer = TRACER.get()
    if tracer is not None:
        record.trace_id = tracer.ended(record, seconds)
    logger.info(RequestLine(record, seconds))


class RequestLine:
    """What the log says of a request that has ended."""

    __slots__ = ("_record", "_seconds")

    def __init__(self, record: RequestRecord, seconds: float) -> None:
        self._record = record
        self._seconds = seconds

    def __str__(self) -> str:
        told = self.fields() | {"seconds": f"{self._seconds:.4f}"}
        method, endpoint = told.pop("method"), told.pop("endpoint")
        named = (f"{name}={'-' if value is None else value}" for name, value in told.items())
        return " ".join((f"{method or '-'} {endpoint}", *named))

    def fields(self) -> dict[str, object]:
        """The same for programs. `key` is the key's name."""
        record, caller = self._record, self._record.caller
        path = {} if self._path is None else {"path": self._path}
        trace = {"trace_id": record.trace_id} if record.trace_id else {}
        key = {} if caller.name is None else {"tenant": caller.tenant, "key": caller.name}
        return {
            "method": record.method,
            "endpoint": self._endpoint,
            **path,
            "status": self._status,
            "client": record.client,
            "model": record.model,
            "version": record.version,
            "outcome": record.outcome,
            "seconds": round(self._seconds, 6),
            "request_id": record.request_id,
            **trace,
            **key,
        }

    @property
    def _endpoint(self) -> str:
        return self._record.route if self._record.endpoint == UNKNOWN else self._record.endpoint

    @property
    def _path(self) -> str | None:
        """What no route has, without a character that a line or a terminal takes for more than it is."""
        if self._endpoint != UNKNOWN or self._record.path is None:
            return None
        path = quote(self._record.path[: MAX_PATH_CHARACTERS + 1], errors="replace")
        return path if len(path) <= MAX_PATH_CHARACTERS else f"{path[:MAX_PATH_CHARACTERS]}..."

    @property
    def _status(self) -> int | None:
        """HTTP's; of a socket what it ends with, or 101 where it goes on. None where nothing was answered."""
        if self._record.method != SOCKET:
            return self._record.status
        return next((close_code(code) for code in ERRORS if code == self._record.outcome), 101)


class RequestObserver:
    """ASGI middleware. WebSocket generations are counted where they run: one socket may carry many.

    Args:
        app: what is observed.
        metrics: counts.
        tracer_of: what makes the spans of a scope; None where nobody gets any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer_of: Callable[[Scope], Tracer] | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer_of = tracer_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request and record its end."""
        if self._tracer_of is not None and scope["type"] != "lifespan":
            TRACER.set(self._tracer_of(scope))  # anew for each: a pipelined request is begun from another one's task
            WATCHED.set(None)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        watch(record)
        complete = False

        async def note(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            record.outcome = CANCELLED
            raise
        except Exception:  # answered further out
            record.outcome = "internal_error"
            record.status = record.status or 500
            raise
        finally:
            if not complete and record.outcome == OK:
                record.outcome = CANCELLED
            route = scope.get("route")
            record.endpoint = getattr(route, "path", record.endpoint)
            if record.endpoint == UNKNOWN:
                record.route = _template(scope)
            if record.endpoint not in ("/metrics", "/livez", "/readyz"):
                finish(self._metrics, record)
