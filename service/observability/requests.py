"""One count, one duration and one log line per HTTP request, whatever its end. Never the prompt, never a raw path."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.keys.caller import Caller, current_caller
from service.observability.metrics import UNKNOWN, Metrics

logger = logging.getLogger("carousel.requests")

SCOPE_KEY = "carousel.request"
OK = "ok"
CANCELLED = "cancelled"


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
    answered: bool = False
    """Whether an answer has begun: then its status can no longer be another."""


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record = scope.get(SCOPE_KEY)
    if record is None:
        record = scope[SCOPE_KEY] = RequestRecord()
    assert isinstance(record, RequestRecord)
    return record


def finish(metrics: Metrics, record: RequestRecord) -> None:
    """Count a request that has ended, and log it."""
    seconds = time.perf_counter() - record.started_at
    metrics.request_ended(record.model, record.version, record.endpoint, record.outcome, seconds)
    logger.info(RequestLine(record, seconds))


class RequestLine:
    """What the log says of a request that has ended."""

    __slots__ = ("_record", "_seconds")

    def __init__(self, record: RequestRecord, seconds: float) -> None:
        self._record = record
        self._seconds = seconds

    def __str__(self) -> str:
        record, caller = self._record, self._record.caller
        key = "" if caller.name is None else f" tenant={caller.tenant} key={caller.name}"
        return (
            f"{record.endpoint} model={record.model} version={record.version} outcome={record.outcome} "
            f"seconds={self._seconds:.4f} request_id={record.request_id}{key}"
        )

    def fields(self) -> dict[str, object]:
        """The same for programs. `key` is the key's name."""
        record, caller = self._record, self._record.caller
        key = {} if caller.name is None else {"tenant": caller.tenant, "key": caller.name}
        return {
            "endpoint": record.endpoint,
            "model": record.model,
            "version": record.version,
            "outcome": record.outcome,
            "seconds": round(self._seconds, 6),
            "request_id": record.request_id,
            **key,
        }


class RequestObserver:
    """ASGI middleware. WebSocket generations are counted where they run: one socket may carry many."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request and record its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        complete = False

        async def watch(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.answered = True
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except asyncio.CancelledError:
            record.outcome = CANCELLED
            raise
        except Exception:  # answered further out
            record.outcome = "internal_error"
            raise
        finally:
            if not complete and record.outcome == OK:
                record.outcome = CANCELLED
            route = scope.get("route")
            record.endpoint = getattr(route, "path", record.endpoint)
            if record.endpoint not in ("/metrics", "/livez", "/readyz"):
                finish(self._metrics, record)
