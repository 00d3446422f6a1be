"""While the server drains nobody new gets past here, and who waits for an answer when the grace is over gets a 503."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from carousel.service.api.routes.handlers import error_response
from carousel.service.api.stream.connection import say_goodbye
from carousel.service.api.stream.handshake import accept
from carousel.service.observability.metrics import Metrics
from carousel.service.observability.requests import finish, record_of, socket_record
from carousel.service.work.drain import Drain

WATCHING_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"})
"""Answered to the last: they are how a server is watched while it drains."""


class DrainGate:
    """ASGI middleware. Streams are not cut off here: those who send them listen to the drain."""

    def __init__(self, app: ASGIApp, drain: Drain, metrics: Metrics) -> None:
        self._app = app
        self._drain = drain
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind, drain = scope["type"], self._drain
        if kind == "lifespan" or (kind == "http" and scope["path"] in WATCHING_PATHS):
            await self._app(scope, receive, send)
        elif drain.begun:
            await self._refuse(scope, receive, send)
        else:
            record = record_of(scope) if kind == "http" else None
            task = asyncio.current_task()
            assert task is not None
            drain.enter(task, record)
            try:
                await self._app(scope, receive, send)
            except asyncio.CancelledError:
                if not drain.over or record is None or record.status is not None or task.uncancel():
                    raise
                await self._refuse(scope, receive, send)
            finally:
                drain.leave(task)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._drain.refusal()
        if scope["type"] == "http":
            response = error_response(scope, error)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
        else:
            websocket = WebSocket(scope, receive, send)
            await accept(websocket)
            finish(self._metrics, socket_record(scope, error.code))
            await say_goodbye(websocket, error)
