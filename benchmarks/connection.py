"""One WebSocket of the load generator: runs generations one after another and tells a recorder when tokens arrive.

The client shares the machine with the server it measures, so a token must cost it little: a token frame is recognised
by its first bytes and never parsed, and compression, pings and proxies are off.
"""

from __future__ import annotations

import json
from time import perf_counter

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from benchmarks.record import Recorder

TOKEN_PREFIXES = (b'{"type":"token"', b'{"type": "token"')
"""How a token frame begins, as compact and as default JSON. A frame that begins otherwise is parsed, token or not."""

CLOSE_SECONDS = 2.0


class GenerationFailed(Exception):
    """A generation was refused or broke off.

    Args:
        code: the server's error code, or `connection_refused`, `connection_lost`, `handshake`, `http_<status>`.
        retryable: the server said that trying again later may succeed: the request was shed.
    """

    def __init__(self, code: str, *, retryable: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.retryable = retryable


class Connection:
    """A connected WebSocket; `open` makes one."""

    def __init__(self, socket: ClientConnection, recorder: Recorder) -> None:
        self._socket = socket
        self._recorder = recorder

    @classmethod
    async def open(cls, uri: str, recorder: Recorder) -> Connection:
        """Connect to a `ws://` URI.

        Raises:
            GenerationFailed: nobody listens, or the server refused (retryable where it said 503).
        """
        try:
            socket = await connect(
                uri, compression=None, ping_interval=None, proxy=None, max_queue=None, close_timeout=CLOSE_SECONDS
            )
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            raise GenerationFailed(f"http_{status}", retryable=status == 503) from None
        except (InvalidHandshake, TimeoutError):
            raise GenerationFailed("handshake") from None
        except OSError:
            raise GenerationFailed("connection_refused") from None
        return cls(socket, recorder)

    async def generate(self, start: str | bytes, asked: float) -> None:
        """Send what starts a generation and read to its end.

        Args:
            start: a start frame's JSON, or an image.
            asked: when the generation was asked for; its first token's time counts from here.

        Raises:
            GenerationFailed: the server sent an error or went away.
        """
        previous: float | None = None
        try:
            await self._socket.send(start)
            while True:
                frame = await self._socket.recv(decode=False)
                now = perf_counter()
                if frame.startswith(TOKEN_PREFIXES) or (message := json.loads(frame))["type"] == "token":
                    if previous is None:
                        self._recorder.first_token(now, asked)
                    else:
                        self._recorder.next_token(now, previous)
                    previous = now
                elif message["type"] == "error":
                    raise GenerationFailed(message["code"], retryable=message["retryable"])
                elif message["type"] == "finished":
                    self._recorder.finished(now)
                    return
        except ConnectionClosed:
            raise GenerationFailed("connection_lost") from None

    async def close(self) -> None:
        """Say goodbye and hang up, in the middle of a generation too."""
        await self._socket.close()
