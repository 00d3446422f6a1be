"""uvicorn, set up for streams of small messages."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn

from carousel.service.app import create_app
from carousel.service.observability.requests import finish
from carousel.service.server.http_protocol import Bounds, bounded
from carousel.service.server.stream_protocol import StreamProtocol
from carousel.service.settings import Settings
from carousel.service.work.drain import Drain

if TYPE_CHECKING:
    from carousel.service.api.oip.grpc_server import GrpcServer

logger = logging.getLogger("carousel")

HEADERS = [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "no-referrer")]
"""Of every response: what is sent as JSON or a picture is nothing else, belongs in nobody's frame, and tells no other
site its URL, which may name a session. (HSTS is for whoever speaks TLS.)"""

ACCEPTS = 16
"""Times that each address is listened on: libuv accepts one connection for each in a turn of the event loop, and turns
are long while tokens go out. Whoever came behind more would wait for many, before anybody could refuse it."""

FAREWELL_SECONDS = 3.0
"""How long those who are ended when the grace is over may take to be told."""


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and lets what runs finish before it stops.

    uvicorn's own would stop listening and close every WebSocket at once.

    Args:
        config: uvicorn's.
        drain: the application's.
        grace_seconds: how long what runs may go on.
        open_grpc: what listens for gRPC, too, where that is asked for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        grace_seconds: float,
        open_grpc: Callable[[], GrpcServer] | None = None,
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._grace_seconds = grace_seconds
        self._open_grpc = open_grpc
        self.grpc: GrpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, and say so."""
        self.grpc = None if self._open_grpc is None else self._open_grpc()
        await super().startup(sockets)
        loop, config = asyncio.get_running_loop(), self.config

        def protocol() -> asyncio.Protocol:
            kind = cast(Callable[..., asyncio.Protocol], config.http_protocol_class)
            return kind(config=config, server_state=self.server_state, app_state=self.lifespan.state)

        for server in list(self.servers):
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                logger.info("ready on http://%s:%d (/docs describes the API)", shown, port)
                for _ in range(1, ACCEPTS):
                    again = socket.socket(fileno=os.dup(listening.fileno()))
                    self.servers.append(await loop.create_server(protocol, sock=again, backlog=config.backlog))
        if self.grpc is not None and self.started:
            await self.grpc.start()
            logger.info("ready for gRPC on %s:%d", config.host, self.grpc.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, and stop. Until what runs has ended the server listens, so that it can say that it is not ready."""
        drain = self._drain
        drain.begin()
        logger.info("shutting down: %d requests and sockets may go on for %g s", len(drain), self._grace_seconds)
        if not await drain.quiet(self._grace_seconds):
            logger.warning(
                "the grace of %g s is over: %d requests and sockets are ended", self._grace_seconds, len(drain)
            )
            drain.end()
            if not await drain.quiet(FAREWELL_SECONDS):
                self._abort()
                await drain.quiet(FAREWELL_SECONDS)
        if self.grpc is not None:
            await self.grpc.stop(FAREWELL_SECONDS)
        late = asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self._abort)  # who reads nothing more
        await super().shutdown(sockets)
        late.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain; the second does at once what it would do to any process."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            os._exit(128 + sig)  # to a container's first process the kernel does nothing by default
        super().handle_exit(sig, frame)

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def create_server(settings: Settings) -> Server:
    """The server, not yet running."""
    app = create_app(settings)
    context = app.state.context
    bounds = Bounds(
        settings.max_connections,
        settings.receive_seconds,
        on_excess=context.metrics.connection_refused,
        on_refused=partial(finish, context.metrics),
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded(bounds),
        ws=StreamProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,  # token frames are too small to gain and too many to pay
        access_log=False,
        proxy_headers=False,  # nothing here asks where a client is
        log_config=None,
        server_header=False,
        headers=HEADERS,
    )
    open_grpc = None
    if settings.grpc_port is not None:
        from carousel.service.api.oip.grpc_server import GrpcServer  # of an extra

        open_grpc = partial(GrpcServer, app, settings)
    return Server(config, context.drain, settings.shutdown_grace_seconds, open_grpc)
