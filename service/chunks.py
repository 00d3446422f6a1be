"""Events of an HTTP response, written past ASGI when the socket can take them (see api/direct_frames.py)."""

from __future__ import annotations

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.direct_frames import FRAME_WRITER


class ChunkWriter:
    """Writes chunks of one response's body (a service.api.direct_frames.FrameWriter).

    Args:
        protocol: the connection.
        scope: of the request; a request that comes on the same connection before its end makes it wait its turn.
    """

    def __init__(self, protocol: HttpToolsProtocol, scope: Scope) -> None:
        self._protocol = protocol
        self._scope = scope

    @property
    def ready(self) -> bool:
        """Whether the response has begun, in chunks, and not too much of it is unsent."""
        cycle = self._protocol.cycle
        return (
            cycle is not None
            and cycle.scope is self._scope
            and bool(cycle.chunked_encoding)
            and not (cycle.response_complete or cycle.disconnected or cycle.flow.write_paused)
        )

    def write_text(self, text: str) -> None:
        """Send a chunk (RFC 9112, section 7.1)."""
        content = text.encode()
        self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(content), content))


class ChunkProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which leaves a ChunkWriter in the scope of each request."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        scope: Scope = self.scope  # type: ignore[assignment]  # servers may add keys
        scope[FRAME_WRITER] = ChunkWriter(self, scope)
