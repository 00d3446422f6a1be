"""A keep-alive HTTP/1.1 connection of the load generator, whose answers are streamed in chunks: one event a token.

Served so: the service's completions (server-sent events), and the peers whose frameworks stream over HTTP. An event is
taken for a token by a marker in it, and lies within a chunk, as servers write what the application yields.
"""

from __future__ import annotations

import json
from time import perf_counter

from carousel.benchmarks.connection import Connection, GenerationFailed

MARKERS = (b'"finish_reason":null', b'"token":')
"""What a token's event holds once: of the service's completions, and of the peers."""

ERROR = b'data: {"error"'
"""How the service ends a stream that has begun and cannot go on."""


class EventStream(Connection):
    """A connected socket; `open` makes one. Each generation is a POST of the URI."""

    _rest = b""
    _chunked: bool | None = None
    """Of the answer that is being read; None before its head."""
    _status = 0
    _told_when = False
    _length = 0

    async def _begin(self) -> None:
        """HTTP needs no greeting."""

    def _send(self, request: str | bytes) -> None:
        body = request.encode() if isinstance(request, str) else request
        self._transport.write(
            f"POST {self._address.path} HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def data_received(self, data: bytes) -> None:
        """The event loop's."""
        now = perf_counter()
        if self._rest:
            data = self._rest + data
        at = 0
        if self._chunked is None:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._rest = data
                return
            self._read_head(data[:at].lower())
        if self._chunked:
            self._rest = self._read_chunks(data, at, now)
        elif len(data) - at >= self._length:
            self._read_whole(data[at : at + self._length], now)
            self._rest = b""
        else:
            self._rest = data[at:]

    def _read_head(self, head: bytes) -> None:
        self._status = int(head.split(b" ", 2)[1])
        self._chunked = b"transfer-encoding: chunked" in head
        self._told_when = b"\r\nretry-after: " in head
        _, named, length = head.partition(b"content-length:")
        self._length = int(length.split(b"\r", 1)[0]) if named else 0

    def _read_chunks(self, data: bytes, at: int, now: float) -> bytes:
        """Count the tokens of all chunks that are there in full; returns what is left."""
        tokens = 0
        while (start := data.find(b"\r\n", at) + 2) > 1:
            size = int(data[at : start - 2], 16)
            end = start + size + 2
            if len(data) < end:
                break
            at = end
            if size:
                tokens += max(data.count(marker, start, end) for marker in MARKERS)
                if data.startswith(ERROR, start):
                    error = json.loads(data[start + 6 : end])["error"]
                    self._fail(GenerationFailed(error["code"], retryable=error["retryable"]))
                    self._transport.close()
                continue
            self._chunked = None
            self._tokens(tokens, now)
            self._end_answer(now, b"")
            return data[at:]
        self._tokens(tokens, now)
        return data[at:]

    def _read_whole(self, body: bytes, now: float) -> None:
        """An answer of known length: no stream."""
        self._chunked = None
        self._end_answer(now, body)

    def _end_answer(self, now: float, body: bytes) -> None:
        if self._status == 200:
            self._finish(now)
            return
        code, retryable = f"http_{self._status}", self._status == 503
        try:
            error = json.loads(body)["error"]
            code, retryable = error["code"], error["retryable"]
            if retryable and not self._told_when:
                code, retryable = "no_retry_after", False  # to say "later" and not when is half an answer
        except (ValueError, KeyError, TypeError):
            pass  # a peer has errors of its own shape
        self._fail(GenerationFailed(code, retryable=retryable))
