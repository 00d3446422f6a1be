"""Server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api import frames
from service.api.disconnect import Interrupted, disconnected, unless
from service.observability.requests import record_of

FAREWELL_SECONDS = 2.0
"""How long a client that read too slowly has to take the last event."""


class LastEvents(bytes):
    """What a stream ends with: goes out in one write with the end of the response."""


class EventStream(StreamingResponse):
    """Server-sent events; gives the engine's places and the session back however the response ends.

    The head goes with the first event: an error before it is answered with a status of its own.
    A client that does not read at all leaves the response stuck in a send: after an overflow it is cut off.

    Args:
        content: the events.
        places: left at the end.
        overflow: done (see `note`) when the client has read too slowly.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], places: AsyncExitStack, overflow: asyncio.Future[None]) -> None:
        super().__init__(content, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._places = places
        self._overflow = overflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._places:
            leaves = asyncio.ensure_future(disconnected(receive))

            def cut_off() -> None:
                if not leaves.done():
                    record_of(scope).outcome = "slow_reader"
                    leaves.cancel()

            loop = asyncio.get_running_loop()
            self._overflow.add_done_callback(lambda _: loop.call_later(FAREWELL_SECONDS, cut_off))
            try:
                await unless(leaves, self.stream_response(send))
            except Interrupted:
                pass
            finally:
                leaves.cancel()

    async def stream_response(self, send: Send) -> None:
        """Send the head and the body."""
        begun, more = False, True
        async for event in self.body_iterator:
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            more = not isinstance(event, LastEvents)
            await send({"type": "http.response.body", "body": event, "more_body": more})
        if more:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def note(overflow: asyncio.Future[None]) -> None:
    """The client of a stream has read too slowly; every sequence of its request may say so."""
    if not overflow.done():
        overflow.set_result(None)


def sse(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + frames.dumps(value).encode() + b"\n\n"
