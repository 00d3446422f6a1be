"""uvicorn, set up for streams of small messages."""

from __future__ import annotations

import logging
import socket

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.api.message_limit import MESSAGE_LIMIT
from service.app import create_app
from service.settings import Settings

logger = logging.getLogger("carousel")

LINGER_SECONDS = 5.0
"""How long a socket whose application has ended may take to send what is buffered."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which would wait for ever for a client that never reads its last bytes.

    The application may change how long a message may be (`allow_messages_of`), before it accepts the connection.
    """

    async def run_asgi(self) -> None:
        """Run the application; soon after its end, drop the connection whatever is still unsent."""
        self.scope[MESSAGE_LIMIT] = self._allow_messages_of  # type: ignore[literal-required]  # servers may add keys
        await super().run_asgi()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

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
        ws=StreamProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,  # token frames are too small to gain and too many to pay
        access_log=False,
        proxy_headers=False,  # nothing here asks where a client is
        log_config=None,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
        server_header=False,
    )
    return Server(config)
