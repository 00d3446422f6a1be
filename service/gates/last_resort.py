"""What nobody expected becomes an error like any other, and the connection stays open behind it.

Starlette's own handler of all exceptions answers, and raises on; then uvicorn closes the connection without having said
so, and the next request on it is lost.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carousel.service.api.routes.handlers import error_response
from carousel.service.errors import ServiceError

logger = logging.getLogger("carousel.errors")


class LastResort:
    """ASGI middleware that answers internal_error to a request whose handling failed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. An answer that has begun can only be broken off, which the server does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if started:
                raise
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
            told = ServiceError("internal_error", "the server failed on this request; it has been logged")
            await error_response(scope, told)(scope, receive, send)
