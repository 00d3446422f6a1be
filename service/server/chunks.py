"""Events of an HTTP response, written past ASGI when the socket can take them (see api/routes/direct_frames.py)."""

from __future__ import annotations

from typing import Any, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from carousel.service.api.routes.direct_frames import FRAME_WRITER


class ChunkWriter:
    """Writes chunks of one response's body (a service.api.routes.direct_frames.FrameWriter).

    It does not know its request's scope, which knows it: only a search for garbage would free the two.

    Args:
        protocol: the connection.
    """

    def __init__(self, protocol: ChunkProtocol) -> None:
        self._protocol = protocol
        self.wrote = False
        """Whether anything was written since this was last set back."""

    @property
    def ready(self) -> bool:
        """Whether the response has begun, in chunks, not too much of it is unsent, and no other request has come."""
        protocol = self._protocol
        cycle = protocol.cycle
        return (
            protocol.chunk_writer is self
            and cycle is not None
            and bool(cycle.chunked_encoding)
            and not (cycle.response_complete or cycle.disconnected or cycle.flow.write_paused)
        )

    def write_text(self, text: str) -> None:
        """Send a chunk (RFC 9112, section 7.1)."""
        content = text.encode()
        self.wrote = True
        self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(content), content))


class ChunkProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which leaves a ChunkWriter in the scope of each request.

    It also tells a request that its client has left when another was pipelined behind it, which uvicorn would not.
    """

    chunk_writer: ChunkWriter | None = None
    """Of the last request that has come."""

    _running: RequestResponseCycle | None = None

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        scope = cast(Scope, self.scope)  # as ASGI has it: servers may add keys
        scope[FRAME_WRITER] = self.chunk_writer = ChunkWriter(self)

    def on_headers_complete(self) -> None:
        """A request has come. One that waits its turn does not stop the reading: the client's end must be seen."""
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or is made to."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        self._let_go()

    def handle_websocket_upgrade(self) -> None:
        """Another protocol takes the connection over."""
        super().handle_websocket_upgrade()
        self._let_go()

    def _let_go(self) -> None:
        """Forget who knows this protocol: only a search for garbage would free them, and all they know."""
        self.parser = cast(Any, None)  # as uvicorn does, but for the upgrade
        self.chunk_writer = None
        if self.scope is not None:
            cast(Scope, self.scope).pop(FRAME_WRITER, None)
