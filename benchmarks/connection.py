"""One connection of the load generator: runs generations one after another and tells a recorder when tokens arrive.

The client shares the machine with the server it measures, so a token must cost it little: what arrives is handled where
the event loop delivers it, without a task that wakes for each token, and a token is recognised by a few bytes and never
parsed. How the bytes are cut into tokens is said by the subclasses, websocket.py and event_stream.py.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Self, cast
from urllib.parse import SplitResult, urlsplit

from carousel.benchmarks.record import Recorder

OPEN_SECONDS = 30.0
CLOSE_SECONDS = 2.0


class GenerationFailed(Exception):
    """A generation was refused or broke off.

    Args:
        code: the server's error code, or `connection_refused`, `connection_lost`, `handshake`, `http_<status>`,
            `empty`.
        retryable: the server said that trying again later may succeed: the request was shed.
    """

    def __init__(self, code: str, *, retryable: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.retryable = retryable


class Connection(asyncio.Protocol, ABC):
    """A connected socket with at most one generation on it; `open` makes one."""

    def __init__(self, address: SplitResult, recorder: Recorder) -> None:
        self._address = address
        self._recorder = recorder
        self._transport: asyncio.Transport
        self._asked = 0.0
        self._previous: float | None = None
        self._end: asyncio.Future[None] | None = None
        self._lost = False
        self._closed = asyncio.Event()

    @classmethod
    async def open(cls, uri: str, recorder: Recorder) -> Self:
        """Connect to a `ws://` or `http://` URI.

        Raises:
            GenerationFailed: nobody listens, or the server refused (retryable where it said 503).
        """
        address = urlsplit(uri)
        assert address.hostname is not None
        assert address.port is not None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: cls(address, recorder), address.hostname, address.port
                )
                await connection._begin()
        except TimeoutError:
            raise GenerationFailed("handshake") from None
        except OSError:
            raise GenerationFailed("connection_refused") from None
        return connection

    async def generate(self, request: str | bytes, asked: float) -> None:
        """Send what starts a generation and wait for its end.

        Args:
            request: a start frame's JSON, an image, or the body of a POST.
            asked: when the generation was asked for; its first token's time counts from here.

        Raises:
            GenerationFailed: the server sent an error or went away.
        """
        if self._lost:
            raise GenerationFailed("connection_lost")
        self._asked, self._previous = asked, None
        self._end = asyncio.get_running_loop().create_future()
        try:
            self._send(request)
            await self._end
        finally:
            self._end = None

    @property
    def usable(self) -> bool:
        """Whether another generation can run on it."""
        return not self._lost and not self._transport.is_closing()

    def hang_up(self) -> None:
        """Close, and wait for nothing."""
        self._transport.close()

    async def close(self) -> None:
        """Hang up, in the middle of a generation too."""
        self.hang_up()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop's."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The event loop's: whoever waits is told."""
        self._lost = True
        self._closed.set()
        self._fail(GenerationFailed("connection_lost"))

    @abstractmethod
    async def _begin(self) -> None:
        """What comes before the first generation."""

    @abstractmethod
    def _send(self, request: str | bytes) -> None:
        """Put a request on the wire."""

    def _tokens(self, count: int, now: float) -> None:
        """So many tokens of the running generation came with one read."""
        previous = self._previous
        for _ in range(count):
            if previous is None:
                self._recorder.first_token(now, self._asked)
            else:
                self._recorder.next_token(now, previous)
            previous = now
        self._previous = previous

    def _finish(self, now: float) -> None:
        """The running generation came to its end. One without a token is a failure: nothing was served."""
        if self._previous is None:
            self._fail(GenerationFailed("empty"))
        elif self._end is not None and not self._end.done():
            self._recorder.finished(now, self._asked)
            self._end.set_result(None)

    def _fail(self, failure: GenerationFailed) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_exception(failure)
