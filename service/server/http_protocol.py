"""The HTTP protocol, with a bound on all that a client may send, open or take its time for before it is a request.

What a request itself may hold is bounded further in (gates/body_limit.py, gates/load_gate.py). uvicorn has no bounds
here.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from weakref import ref

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from carousel.service.api.wire.error_bodies import answer
from carousel.service.errors import RequestError, ServiceError, Unavailable
from carousel.service.observability.requests import RequestRecord, record_of
from carousel.service.server.chunks import ChunkProtocol

RETRY_AFTER_SECONDS = 5
"""For who is refused a connection: nobody knows when one of the others closes."""

LINGER_SECONDS = 1.0
"""How long who is refused may take to read why."""

EXCESS_SECONDS = 1.0
"""How long who is one too many may say nothing, and so not be told."""

MAX_LINE_BYTES = 8_000
"""Of the request line and of each header. The library behind WebSockets reads 8,192 of a line, and just stops there."""

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32_000
"""Of all of a head; and of what comes with a chunked body and is not it: extensions, trailers."""

CHUNK_FRAMING_BYTES = 64
"""That each piece of a body may bring along."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is bounded as the machine likes, and who is told.

    Args:
        max_connections: that are open, HTTP and WebSocket together: one more is told 503 before a byte is parsed.
        receive_seconds: that a request may take to come, from its first byte (a connection's first: from the
            connection) to its last.
        on_excess: called with each connection that is one too many.
        on_refused: called with the record of what never came to be a request.
    """

    max_connections: int
    receive_seconds: float
    on_excess: Callable[[], None]
    on_refused: Callable[[RequestRecord], None]


class HttpProtocol(ChunkProtocol):
    """One connection."""

    bounds: ClassVar[Bounds]

    _excess = False
    _refused = False
    """What comes now is thrown away."""
    _refusal: ServiceError | None = None
    """Why the parser was told to stop."""
    _unaccounted_bytes = 0
    """Received of the message that comes, its body left out."""
    _read_bytes = 0
    """In which this message may have begun."""
    _receiving = False
    """Whether a message has begun to come and is not whole."""
    _head_complete = False
    _upgraded = False
    _deadline: asyncio.TimerHandle | None = None
    """While anything is due: a connection's first message, or the rest of one."""

    def connection_made(self, transport: Any) -> None:
        """A client has come, and may be one too many."""
        super().connection_made(transport)
        self._excess = len(self.connections) > self.bounds.max_connections
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or is made to."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._excess:
            # Not sooner: what a client sends to a closed socket resets it, and takes the answer along.
            if not self.transport.is_closing():
                self._answer(_too_many(self.bounds.max_connections))
                self.transport.close()
                self.bounds.on_excess()
            return
        if self._refused:
            return
        self._read_bytes = len(data)
        self._unaccounted_bytes += len(data)
        super().data_received(data)
        if self._refused or self._upgraded:
            return
        if self._unaccounted_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large(f"is longer than {MAX_HEAD_BYTES:,} bytes"))
        elif self._receiving or not self._answering:
            self._expect()  # also where there is nothing but empty lines, before which uvicorn forgets that it waits

    def on_message_begin(self) -> None:
        """A request begins to come."""
        self._receiving, self._head_complete = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is whole. What follows a body as trailers is nobody's."""
        if max(self._unaccounted_bytes, self._read_bytes) > MAX_LINE_BYTES or len(self.headers) > MAX_HEADERS:
            self._check_head()
        self._head_complete = True
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = []

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unaccounted_bytes = max(0, self._unaccounted_bytes - len(body) - CHUNK_FRAMING_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._receiving = False
        self._unaccounted_bytes = 0
        self._expect_nothing()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """The connection becomes a WebSocket's."""
        self._upgraded = True
        self._expect_nothing()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's, which says less)
        """Refuse what the parser did not understand, or what it was told not to."""
        refusal, self._refusal = self._refusal, None
        self._refuse(refusal or RequestError("malformed_http", "what came is not HTTP/1.1, or not whole"))

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _check_head(self) -> None:
        sizes = [len(self.url), *(len(name) + len(value) for name, value in self.headers)]
        if max(sizes) > MAX_LINE_BYTES:
            self._stop(_too_large(f"has a line longer than {MAX_LINE_BYTES:,} bytes"))
        if len(self.headers) > MAX_HEADERS:
            self._stop(_too_large(f"has more than {MAX_HEADERS} headers"))
        if sum(sizes) > MAX_HEAD_BYTES:
            self._stop(_too_large(f"is longer than {MAX_HEAD_BYTES:,} bytes"))

    def _stop(self, refusal: ServiceError) -> None:
        """Stop the parser, which then asks for a response."""
        self._refusal = refusal
        raise ValueError(refusal.message)

    def _expect(self) -> None:
        """Give the client its time, if that does not run already."""
        if self._deadline is None and not self.transport.is_closing():
            seconds = EXCESS_SECONDS if self._excess else self.bounds.receive_seconds
            self._deadline = self.loop.call_later(seconds, self._too_late)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # it is not the client who takes the time
            self._expect()
        elif self._receiving:
            seconds = f"{self.bounds.receive_seconds:,.12g}"
            message = f"the request did not come within {seconds} s (CAROUSEL_RECEIVE_SECONDS); send it at once"
            self._refuse(RequestError("request_timeout", message))
        else:
            self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answer in place of the application, if it has not begun to, and close the connection."""
        if self.transport.is_closing():
            return
        self._refused = True
        self._expect_nothing()
        running, path = self._running, ""
        if self._receiving and self._head_complete:
            if running is None or running is not self.cycle or running.response_started:
                self.transport.close()
                return
            record, path = record_of(cast(Scope, running.scope)), running.scope["path"]
            # The application sees that its client has left, and counts.
            record.outcome, record.status = error.code, answer(error, path).status
            running.disconnected = True
            running.message_event.set()
        elif self._answering:  # another request, which was pipelined before
            self.transport.close()
            return
        else:
            client = None if self.client is None else str(self.client[0])
            record = RequestRecord(outcome=error.code, status=error.status, client=client)
            self.bounds.on_refused(record)
        self._answer(error, record, path)
        self._linger()

    def _answer(self, error: ServiceError, record: RequestRecord | None = None, path: str = "") -> None:
        told = answer(error, path)
        body = json.dumps(told.body, separators=(",", ":")).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if record is not None:
            headers.append((b"x-request-id", record.request_id.encode()))
        headers += [(name.encode(), value.encode()) for name, value in told.headers.items()]
        status = http.HTTPStatus(told.status)
        lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode()), *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))

    def close_after_answer(self) -> None:
        """Close the connection behind an answer. What comes of an unread body meanwhile is thrown away."""
        if not self._receiving or self.transport.is_closing():
            self.transport.close()
            return
        self._refused = True
        self._expect_nothing()
        self.flow.resume_reading()
        self._linger()

    def _linger(self) -> None:
        """Not closed at once: bytes that come to a closed socket reset it, and the client may never read why."""
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._receiving:
            cycle.transport = cast(asyncio.Transport, _Lingering(self))
        if cycle.scope["http_version"] == "1.0":
            app = _until_the_end(cycle, app)
        super()._start_asgi_task(cycle, app)


class _Lingering:
    """A connection's transport as a request has it whose body is still to come: closing it loses no answer."""

    def __init__(self, protocol: HttpProtocol) -> None:
        transport = protocol.transport
        self.write, self.is_closing = transport.write, transport.is_closing
        self._protocol = ref(protocol)  # which knows the request: only a search for garbage would free the two

    def close(self) -> None:
        protocol = self._protocol()
        if protocol is not None:
            protocol.close_after_answer()


def bounded(bounds: Bounds) -> type[HttpProtocol]:
    """The protocol, with these bounds."""
    return type("BoundedHttpProtocol", (HttpProtocol,), {"bounds": bounds})


def _too_many(connections: int) -> ServiceError:
    return Unavailable(
        "capacity_exceeded",
        f"{connections:,} connections are open; allowed are {connections:,} (CAROUSEL_MAX_CONNECTIONS); "
        f"try again in {RETRY_AFTER_SECONDS} s",
        RETRY_AFTER_SECONDS,
    )


def _too_large(what: str) -> ServiceError:
    return RequestError("head_too_large", f"the head of the request {what}; send less of it")


def _until_the_end(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """An application whose streamed responses have no chunks, which HTTP/1.0 does not know; they end as it does.

    uvicorn counts what it sends against a content-length: here what it is about to send is always what is left.
    """

    async def unchunked(scope: Scope, receive: Receive, send: Send) -> None:
        streamed = False

        async def counted(message: Message) -> None:
            nonlocal streamed
            if message["type"] == "http.response.start":
                streamed = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if streamed:
                    cycle.chunked_encoding = False
            elif streamed:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await cast(ASGIApp, app)(scope, receive, counted)

    return cast(ASGI3Application, unchunked)
