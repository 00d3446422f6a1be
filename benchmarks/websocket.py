"""A WebSocket (RFC 6455) of the load generator: as much of the protocol as a benchmark on this machine needs.

It offers no extension, answers pings, and takes every message in one frame, as the servers here send them.
"""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from urllib.parse import SplitResult

from carousel.benchmarks.connection import Connection, GenerationFailed
from carousel.benchmarks.record import Recorder

TOKEN_PREFIXES = (b'{"type":"token"', b'{"type": "token"')
"""How a token frame begins, as compact and as default JSON. A frame that begins otherwise is parsed, token or not."""

KEY = "Y2Fyb3VzZWwgYmVuY2htYQ=="
"""The handshake's nonce. It tells a WebSocket server from a cache, of which there is none on this machine."""

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket(Connection):
    """A connected WebSocket; `open` makes one."""

    def __init__(self, address: SplitResult, recorder: Recorder) -> None:
        super().__init__(address, recorder)
        self._rest = b""
        """What has arrived of a frame (before the upgrade: of the answer's head) that is not there in full."""
        self._upgraded: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()

    async def _begin(self) -> None:
        assert self._upgraded is not None
        self._transport.write(
            f"GET {self._address.path} HTTP/1.1\r\nHost: {self._address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        try:
            await self._upgraded
        except GenerationFailed:
            await super().close()
            raise
        finally:
            self._upgraded = None

    async def close(self) -> None:
        """Say goodbye and hang up, in the middle of a generation too."""
        if self.usable:
            self._transport.write(frame(CLOSE, b"\x03\xe8"))
        await super().close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The event loop's: whoever waits is told."""
        if self._upgraded is not None and not self._upgraded.done():
            self._upgraded.set_exception(GenerationFailed("handshake"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The event loop's."""
        now = perf_counter()
        if self._rest:
            data = self._rest + data
        at = self._read_upgrade(data) if self._upgraded is not None and not self._upgraded.done() else 0
        tokens, size = 0, len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if size < start:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            end = start + length
            if size < end:
                break
            if data.startswith(TOKEN_PREFIXES, start, end):
                tokens += 1
            else:
                self._tokens(tokens, now)
                tokens = 0
                self._read_other(data[at] & 0x0F, data[start:end], now)
            at = end
        self._tokens(tokens, now)
        self._rest = data[at:]

    def _read_upgrade(self, data: bytes) -> int:
        """Where the first frame begins."""
        assert self._upgraded is not None
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        status = int(data.split(b" ", 2)[1])
        if status == 101:
            self._upgraded.set_result(None)
            return end
        self._upgraded.set_exception(GenerationFailed(f"http_{status}", retryable=status == 503))
        return len(data)

    def _read_other(self, opcode: int, payload: bytes, now: float) -> None:
        """Everything but a token frame that begins as most do."""
        if opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self._lost = True
            self._fail(GenerationFailed("connection_lost"))
            self._transport.close()
        elif opcode == TEXT:
            message = json.loads(payload)
            if message["type"] == "token":
                self._tokens(1, now)
            elif message["type"] == "finished":
                self._finish(now)
            elif message["type"] == "error":
                self._fail(GenerationFailed(message["code"], retryable=message["retryable"]))

    def _send(self, request: str | bytes) -> None:
        opcode, payload = (TEXT, request.encode()) if isinstance(request, str) else (BINARY, request)
        self._transport.write(frame(opcode, payload))


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's message in one frame. Clients must mask; a mask of zeros changes nothing."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload
