"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.observability.requests import record_of

FAREWELL_SECONDS = 2.0
"""How long a client that read too slowly has to take the last event."""


class EventStream(StreamingResponse):
    """Server-sent events; gives the engine's places and the session back however the response ends.

    The head goes with the first event: an error before it is answered with a status of its own.
    A client that does not read at all leaves the response stuck in a send: after an overflow it is cut off.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], places: AsyncExitStack, overflowed: asyncio.Event) -> None:
        super().__init__(content, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._places = places
        self._overflowed = overflowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._places:
            response = asyncio.ensure_future(super().__call__(scope, receive, send))
            overflow = asyncio.ensure_future(self._overflowed.wait())
            try:
                await asyncio.wait({response, overflow}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({response}, timeout=FAREWELL_SECONDS)
                if response.done():
                    response.result()
                else:
                    record_of(scope).outcome = "slow_reader"
            finally:
                overflow.cancel()
                response.cancel()
                await asyncio.gather(response, overflow, return_exceptions=True)

    async def stream_response(self, send: Send) -> None:
        """Send the head and the body."""
        events = aiter(self.body_iterator)
        first = await anext(events)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def sse(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
