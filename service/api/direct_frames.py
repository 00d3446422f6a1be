"""Token frames past ASGI: straight into the socket, when it can take them, without a task of its own being woken."""

from __future__ import annotations

from typing import Protocol

from starlette.websockets import WebSocket

from service.api import frames
from service.generation import Token

FRAME_WRITER = "carousel.frame_writer"
"""Where the server leaves, in a connection's scope, what writes frames; another server leaves nothing."""


class FrameWriter(Protocol):
    """An accepted WebSocket connection, as the server sees it."""

    @property
    def ready(self) -> bool:
        """Whether it is open and has not too much unsent already."""
        ...

    def write_text(self, text: str) -> None:
        """Send a text frame."""
        ...


class TokenFrames:
    """Writes `token` frames (a service.generation.TokenTaker)."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer

    @property
    def ready(self) -> bool:
        """Whether a frame would be sent without waiting."""
        return self._writer.ready

    def take(self, token: Token) -> None:
        """Send the frame of a token."""
        self._writer.write_text(frames.token_json(token))


def token_frames(websocket: WebSocket) -> TokenFrames | None:
    """What takes the tokens of a stream on this (accepted) socket, if the server offers it."""
    writer = websocket.scope.get(FRAME_WRITER)
    return None if writer is None else TokenFrames(writer)
