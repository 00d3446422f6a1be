"""Nobody without a key gets past here, but who asks whether the server lives and is ready."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from carousel.service.api.routes.handlers import error_response
from carousel.service.api.stream.connection import say_goodbye
from carousel.service.api.stream.handshake import accept, key_of
from carousel.service.errors import RequestError, ServiceError
from carousel.service.keys.caller import CALLER, EVERYBODY, Caller
from carousel.service.keys.keyring import Keyring
from carousel.service.observability.metrics import Metrics
from carousel.service.observability.requests import finish, record_of, socket_record

OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""For orchestrators and load balancers, which have no key. All other paths need one, those that do not exist too."""


class KeyGate:
    """ASGI middleware that knows a request's caller and counts the request, before anything of its body is read.

    Paths of admins (`admin_paths` and below) ask for another key themselves.
    What runs behind it finds the caller with `current_caller`. Generations on a socket are counted where they run.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, metrics: Metrics, *, admin_paths: tuple[str, ...] = ()) -> None:
        self._app = app
        self._keyring = keyring
        self._metrics = metrics
        self._admin_paths = admin_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and (scope["path"] in OPEN_PATHS or self._is_admins(scope["path"]))):
            await self._app(scope, receive, send)
            return
        # Not who sent the request before on the same connection, from whose task a pipelined one is started.
        CALLER.set(EVERYBODY)
        if kind == "http":
            record_of(scope).caller = EVERYBODY
        try:
            caller = self._identify(scope)
            if kind == "http":
                record_of(scope).caller = caller
                caller.admit(runs_model=scope["method"] == "POST")
        except ServiceError as error:
            if kind == "http":
                await error_response(scope, error)(scope, receive, send)
            else:
                websocket = WebSocket(scope, receive, send)
                await accept(websocket)
                finish(self._metrics, socket_record(scope, error.code))
                await say_goodbye(websocket, error)
            return
        CALLER.set(caller)  # of this request's task, and of those that it begins
        await self._app(scope, receive, send)

    def _is_admins(self, path: str) -> bool:
        return any(path == first or path.startswith(f"{first}/") for first in self._admin_paths)

    def _identify(self, scope: Scope) -> Caller:
        key = key_of(scope)
        if key is None:
            raise RequestError("missing_key", "there is no API key; send the header Authorization: Bearer KEY")
        caller = self._keyring.find(key)
        if caller is None:
            raise RequestError("unknown_key", "the API key is not, or no longer, one of this server; ask for one")
        return caller
