"""uvicorn, set up for streams of small messages."""

from __future__ import annotations

import logging
import socket

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from service.api.direct_frames import FRAME_WRITER
from service.api.message_limit import MESSAGE_LIMIT
from service.app import create_app
from service.chunks import ChunkProtocol
from service.settings import Settings

logger = logging.getLogger("carousel")

HEADERS = [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "no-referrer")]
"""Of every response: what is sent as JSON or a picture is nothing else, belongs in nobody's frame, and tells no other
site its URL, which may name a session. (HSTS is for whoever speaks TLS.)"""

LINGER_SECONDS = 5.0
"""How long a socket whose application has ended may take to send what is buffered."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which would wait for ever for a client that never reads its last bytes.

    The application may change how long a message may be (`allow_messages_of`), before it accepts the connection.
    """

    async def run_asgi(self) -> None:
        """Run the application; soon after its end, drop the connection whatever is still unsent."""
        self.scope[MESSAGE_LIMIT] = self._allow_messages_of  # type: ignore[literal-required]  # servers may add keys
        self.scope[FRAME_WRITER] = self  # type: ignore[literal-required]
        await super().run_asgi()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    @property
    def ready(self) -> bool:
        """Whether `write_text` may be called: the connection is open, and not too much is unsent."""
        return self.writable.is_set() and self.conn.state is State.OPEN and not self.disconnected

    def write_text(self, text: str) -> None:
        """Send a text frame (RFC 6455, section 5.2: final, not masked; no extension is ever agreed on)."""
        payload = text.encode()
        size = len(payload)
        if size < 126:
            head = bytes((0x81, size))
        elif size < 1 << 16:
            head = b"\x81\x7e" + size.to_bytes(2, "big")
        else:
            head = b"\x81\x7f" + size.to_bytes(8, "big")
        self.transport.write(head + payload)

    def _allow_messages_of(self, max_bytes: int) -> None:
        self.conn.max_message_size = max_bytes


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, and say so."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                logger.info("ready on http://%s:%d (/docs describes the API)", *listening.getsockname()[:2])


def create_server(settings: Settings) -> Server:
    """The server, not yet running."""
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=ChunkProtocol,
        ws=StreamProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,  # token frames are too small to gain and too many to pay
        access_log=False,
        proxy_headers=False,  # nothing here asks where a client is
        log_config=None,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
        server_header=False,
        headers=HEADERS,
    )
    return Server(config)
