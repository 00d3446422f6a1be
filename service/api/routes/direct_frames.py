"""Messages past ASGI: straight into the socket, when it can take them, or out of it, and no task is woken for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope

from carousel.service.work.generation import Token

FRAME_WRITER = "carousel.frame_writer"
"""Where the server leaves, in a connection's or request's scope, what writes frames; another server leaves nothing."""


FRAME_READER = "carousel.frame_reader"
"""Where it leaves what hands over binary messages before they are queued."""


class FrameReader(Protocol):
    """What an accepted WebSocket connection is read through."""

    take: Callable[[bytes], bool] | None
    """Is given each binary message as it comes; one that it does not take is queued for `receive`."""
    queued: int
    """Messages that were, so far."""


class FrameWriter(Protocol):
    """What an accepted WebSocket connection, or a response that has begun, is sent through."""

    @property
    def ready(self) -> bool:
        """Whether it is open and has not too much unsent already."""
        ...

    def write_text(self, text: str) -> None:
        """Send a text frame, or a chunk of the response's body."""
        ...


class SocketWriter(FrameWriter, Protocol):
    """Of a WebSocket, whose frames may be bytes."""

    def write_bytes(self, payload: bytes) -> None:
        """Send a binary frame."""
        ...


class TokenFrames:
    """Sends what is told of a token (a service.work.generation.TokenTaker).

    Args:
        writer: sends.
        tell: what is told of a token; nothing where it is empty.
    """

    def __init__(self, writer: FrameWriter, tell: Callable[[Token], str]) -> None:
        self._writer = writer
        self._tell = tell

    @property
    def ready(self) -> bool:
        """Whether a frame would be sent without waiting."""
        return self._writer.ready

    def take(self, token: Token) -> None:
        """Send the frame of a token."""
        if text := self._tell(token):
            self._writer.write_text(text)


def token_frames(scope: Scope, tell: Callable[[Token], str]) -> TokenFrames | None:
    """What takes the tokens of a stream, if the server offers it."""
    writer = scope.get(FRAME_WRITER)
    return None if writer is None else TokenFrames(writer, tell)
