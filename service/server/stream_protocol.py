"""uvicorn's WebSocket protocol, with a way past ASGI for small messages, in both directions.

Through the library that parses frames, a queue and a task that is woken, a message of a few bytes costs more than what
is done with it. So whole frames are told apart here; what is not taken at once goes the ordinary way, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C, where the library has it so
from websockets.protocol import State

from carousel.service.api.routes.direct_frames import FRAME_READER, FRAME_WRITER
from carousel.service.api.stream.message_limit import MESSAGE_LIMIT

LINGER_SECONDS = 5.0
"""How long a socket whose application has ended may take to send what is buffered."""

HELD_BYTES = 1 << 16
"""Of a frame that is not whole; one that is longer goes the ordinary way."""

FINAL, BINARY, CONTINUED, KINDS = 0x80, 0x82, 0x00, 0x0F


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which would wait for ever for a client that never reads its last bytes.

    The application may change how long a message may be (`allow_messages_of`), before it accepts the connection.
    """

    take: Callable[[bytes], bool] | None = None
    """See FrameReader."""
    queued = 0
    """See FrameReader."""
    _rest = b""
    """The beginning of a frame that is not whole."""
    _passing = 0
    """Bytes to come of a frame that the library is given as it comes."""
    _fragmented = False
    """Whether a message of several frames is on its way."""
    _unframed = False
    """Whether frames are no longer told apart: some came before they were due, or are wrong."""

    async def run_asgi(self) -> None:
        """Run the application; soon after its end, drop the connection whatever is still unsent."""
        scope = cast(Scope, self.scope)  # as ASGI has it: servers may add keys
        scope[MESSAGE_LIMIT] = self._allow_messages_of
        scope[FRAME_WRITER] = scope[FRAME_READER] = self
        await super().run_asgi()
        # Lest only a search for garbage free this protocol.
        del scope[MESSAGE_LIMIT], scope[FRAME_WRITER], scope[FRAME_READER]
        self.take = None
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    @property
    def ready(self) -> bool:
        """Whether a frame may be written: the connection is open, and not too much is unsent."""
        return self.writable.is_set() and self.conn.state is State.OPEN and not self.disconnected

    def write_text(self, text: str) -> None:
        """Send a text frame."""
        self._write(0x81, text.encode())

    def write_bytes(self, payload: bytes) -> None:
        """Send a binary frame."""
        self._write(BINARY, payload)

    def data_received(self, data: bytes) -> None:
        """Tell frames apart (RFC 6455, section 5.2), and give each to whoever takes it."""
        if self._unframed or not self.handshake_complete:
            self._unframed = self.handshake_initiated
            super().data_received(data)
            return
        if self._passing:
            part = data[: self._passing]
            self._passing -= len(part)
            super().data_received(part)
            data = data[len(part) :]
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while size - at >= 2:
            first, length = data[at], data[at + 1] - 128
            start = at + 6
            if length > 125:
                wide = 2 if length == 126 else 8
                start += wide
                if size < start:
                    break
                length = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if length < 0:  # not masked: the library will say so
                self._unframed, self._rest = True, b""
                super().data_received(data[at:])
                return
            end = start + length
            if end > size and end - at <= HELD_BYTES:
                break
            if (
                first == BINARY
                and end <= size
                and self.take is not None
                and not self._fragmented
                and self.conn.state is State.OPEN
                and self.take(apply_mask(data[start:end], data[start - 4 : start]))
            ):
                at = end
                continue
            if first & KINDS in (CONTINUED, 1, 2):
                self._fragmented = not first & FINAL
            self._passing = max(0, end - size)
            super().data_received(data[at:end])
            at = min(end, size)
        self._rest = data[at:]

    def send_receive_event_to_app(self) -> None:
        """Queue a message."""
        self.queued += 1
        super().send_receive_event_to_app()

    def _write(self, first: int, payload: bytes) -> None:
        """Send a frame: final, not masked; no extension is ever agreed on."""
        size = len(payload)
        if size < 126:
            head = bytes((first, size))
        elif size < 1 << 16:
            head = bytes((first, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((first, 127)) + size.to_bytes(8, "big")
        self.transport.write(head + payload)

    def _allow_messages_of(self, max_bytes: int) -> None:
        self.conn.max_message_size = max_bytes
