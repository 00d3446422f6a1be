"""A bound on bodies, counted as the bytes arrive: nothing beyond it is read, kept or parsed."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carousel.service.api.routes.handlers import error_response
from carousel.service.errors import RequestError

IMAGE_PATHS = ("/captions", "/captions/attention.svg")
"""What the paths end in whose bodies are images."""


class BodyLimit:
    """ASGI middleware that answers 413 to a body longer than `max_bytes`, or `max_image_bytes` where images are due."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_image_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_image_bytes = max_image_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._max_image_bytes if scope["path"].endswith(IMAGE_PATHS) else self._max_bytes
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > max_bytes:
            await _refuse(scope, receive, send, max_bytes)
            return
        seen, started, refused = 0, False, False

        async def counted() -> Message:
            nonlocal seen, refused
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > max_bytes:
                    refused = True
                    raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if not refused:  # what the application answers to a body it could not read is not the answer
                started = True
                await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLarge:
            pass
        finally:
            if refused and not started:
                await _refuse(scope, receive, send, max_bytes)


async def _refuse(scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
    error = RequestError("body_too_large", f"the body is longer than the {max_bytes:,} bytes allowed")
    response = error_response(scope, error)
    response.headers["connection"] = "close"
    await response(scope, receive, send)


class _TooLarge(Exception):
    """Unwinds the application when the body turns out too long."""
