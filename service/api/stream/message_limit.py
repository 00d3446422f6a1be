"""How long a WebSocket message may be: the server's setting, unless a route changes it for its own sockets."""

from __future__ import annotations

from starlette.websockets import WebSocket

MESSAGE_LIMIT = "carousel.message_limit"
"""Where the server leaves, in a connection's scope, the function that changes it."""


def allow_messages_of(websocket: WebSocket, max_bytes: int) -> None:
    """Take messages of so many bytes. To be called before the connection is accepted."""
    change = websocket.scope.get(MESSAGE_LIMIT)
    if change is not None:  # another server than ours has limits of its own
        change(max_bytes)
