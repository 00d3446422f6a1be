"""Server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from carousel.service.api.routes.direct_frames import FRAME_WRITER
from carousel.service.api.routes.disconnect import Interrupted, disconnected, unless
from carousel.service.api.wire import frames
from carousel.service.observability.requests import record_of

FAREWELL_SECONDS = 2.0
"""How long a client that read too slowly has to take the last event."""


COMMENT_SECONDS = 5.0
"""Between two comments of a stream that has nothing to say."""

COMMENT = b": waiting\n\n"

PATIENCE_TURNS = 3
"""Times of COMMENT_SECONDS before the first comment of who is not batch."""


class LastEvents(bytes):
    """What a stream ends with: goes out in one write with the end of the response."""


class EventStream(StreamingResponse):
    """Server-sent events; gives the engine's places and the session back however the response ends.

    The head goes with the first event: an error before it is answered with a status of its own. Where nothing is sent
    for COMMENT_SECONDS, a comment is, which clients skip: proxies end what says nothing. Before the first event that
    costs the error its status, so who is not `batch`, and waits for a bounded time, gets one only after PATIENCE_TURNS.
    A client that does not read at all leaves the response stuck in a send: after an overflow it is cut off.

    Args:
        content: the events.
        places: left at the end.
        overflow: done (see `note`) when the client has read too slowly.
        batch: whether it may wait for as long as anything else does.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        content: AsyncIterator[bytes],
        places: AsyncExitStack,
        overflow: asyncio.Future[None],
        *,
        batch: bool,
    ) -> None:
        super().__init__(content, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._places = places
        self._overflow = overflow
        self._patience_turns = 1 if batch else PATIENCE_TURNS
        self._quiet_turns = 0
        """Times of COMMENT_SECONDS since anything was sent."""
        self._begun = False
        self._turn = asyncio.Lock()
        """Of who sends: a comment does not come between an event's head and body."""
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

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
            self._timer = loop.call_later(COMMENT_SECONDS, self._listen, send, scope.get(FRAME_WRITER))
            try:
                await unless(leaves, self.stream_response(send))
            except Interrupted:
                pass
            finally:
                leaves.cancel()
                self._timer.cancel()
                if self._comment is not None:
                    self._comment.cancel()

    async def stream_response(self, send: Send) -> None:
        """Send the head and the body."""
        more = True
        async for event in self.body_iterator:
            more = not isinstance(event, LastEvents)
            async with self._turn:
                self._quiet_turns = 0
                await self._begin(send)
                await send({"type": "http.response.body", "body": event, "more_body": more})
        if more:
            async with self._turn:
                await self._begin(send)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    def _listen(self, send: Send, writer: Any) -> None:
        """Look from time to time whether anything has come; `writer` sends past this response, if anything does."""
        if getattr(writer, "wrote", False):
            writer.wrote, self._quiet_turns = False, 0
        else:
            self._quiet_turns += 1
        if self._quiet_turns >= (1 if self._begun else self._patience_turns) and not self._turn.locked():
            self._comment = asyncio.create_task(self._send_comment(send))
        self._timer = asyncio.get_running_loop().call_later(COMMENT_SECONDS, self._listen, send, writer)

    async def _send_comment(self, send: Send) -> None:
        async with self._turn:
            await self._begin(send)
            await send({"type": "http.response.body", "body": COMMENT, "more_body": True})


def note(overflow: asyncio.Future[None]) -> None:
    """The client of a stream has read too slowly; every sequence of its request may say so."""
    if not overflow.done():
        overflow.set_result(None)


def sse(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + frames.dumps(value).encode() + b"\n\n"
