"""Where a key stands in a request, and how a socket is accepted.

Most clients send `Authorization: Bearer KEY`. A browser's WebSocket can set no header but the subprotocols that it
offers, so there the key may be one of them: `new WebSocket(url, ["carousel", "carousel.key." + key])`. Not the URL's
query, which proxies log and browsers keep. The server chooses `carousel` and never repeats the key.
"""

from __future__ import annotations

from starlette.types import Scope
from starlette.websockets import WebSocket

SUBPROTOCOL = "carousel"
KEY_SUBPROTOCOL = "carousel.key."


def key_of(scope: Scope) -> bytes | None:
    """The key that a request brings, if any; the header comes before a subprotocol."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            key: bytes = value[7:].strip()
            return key
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(KEY_SUBPROTOCOL):
            return str(offered).removeprefix(KEY_SUBPROTOCOL).encode()
    return None


async def accept(websocket: WebSocket) -> None:
    """Accept a socket. A browser that offered subprotocols and is chosen none would close it."""
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
