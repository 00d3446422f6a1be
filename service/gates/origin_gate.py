"""Pages of other sites get no further than they are let, and nobody who calls the server by a name that is not its own.

Over HTTP a browser itself keeps what is answered from a page of another origin, and asks before it sends what a form
cannot (CORS, which starlette's middleware speaks). A WebSocket it opens to anybody.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from carousel.service.api.routes.handlers import error_response
from carousel.service.errors import RequestError
from carousel.service.keys.origins import Origins
from carousel.service.observability.metrics import Metrics
from carousel.service.observability.requests import finish, socket_record


class OriginGate:
    """ASGI middleware that answers 403; to a socket instead of its handshake's answer.

    Args:
        app: what is behind it.
        origins: who is let in.
        metrics: counts refused sockets.
    """

    def __init__(self, app: ASGIApp, origins: Origins, metrics: Metrics) -> None:
        self._app = app
        self._origins = origins
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        error = None if scope["type"] == "lifespan" else self._refusal(scope)
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await error_response(scope, error)(scope, receive, send)
        else:
            finish(self._metrics, socket_record(scope, error.code))
            await WebSocket(scope, receive, send).send_denial_response(error_response(scope, error))

    def _refusal(self, scope: Scope) -> RequestError | None:
        headers = Headers(scope=scope)
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if not all(map(self._origins.knows, hosts)):
            return RequestError(
                "foreign_host",
                "the Host header names another server, and this one listens on this machine only; call it localhost, "
                "or name the origin that a proxy is reached by (CAROUSEL_CORS_ORIGINS)",
            )
        if origin is None:
            return None
        if scope["type"] == "websocket":
            allowed = self._origins.allows(origin, hosts[0] if hosts else None)
        elif self._origins.named and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = self._origins.allows(origin)
        else:
            return None
        if allowed:
            return None
        return RequestError(
            "foreign_origin",
            "pages of another origin may not use this server unless it names them (CAROUSEL_CORS_ORIGINS)",
        )
