"""The HTTP protocol, with a bound on open connections."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from service.chunks import ChunkProtocol
from service.errors import Unavailable

RETRY_AFTER_SECONDS = 5
"""For who is refused a connection: nobody knows when one of the others closes."""


def limited(max_connections: int, on_refused: Callable[[], None]) -> type[ChunkProtocol]:
    """The protocol, for so many open connections: who opens one more is told 503 before a byte is parsed.

    Args:
        max_connections: HTTP and WebSocket together.
        on_refused: called with each refusal.
    """
    refusal = _response(
        Unavailable(
            "capacity_exceeded",
            f"{max_connections:,} connections are open; allowed are {max_connections:,} (CAROUSEL_MAX_CONNECTIONS); "
            f"try again in {RETRY_AFTER_SECONDS} s",
            RETRY_AFTER_SECONDS,
        )
    )

    class HttpProtocol(ChunkProtocol):
        _excess = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._excess = len(self.connections) > max_connections

        def data_received(self, data: bytes) -> None:
            if not self._excess:
                super().data_received(data)
            elif not self.transport.is_closing():
                # Not sooner: what a client sends to a closed socket resets it, and takes the answer along.
                self.transport.write(refusal)
                self.transport.close()
                on_refused()

    return HttpProtocol


def _response(error: Unavailable) -> bytes:
    body = json.dumps(error.body(), separators=(",", ":")).encode()
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"retry-after: %d\r\ncontent-length: %d\r\n\r\n%b" % (error.retry_after_seconds or 1, len(body), body)
    )
