"""HEAD wherever GET is (RFC 9110, section 9.3.2): monitors ask so, and FastAPI answers 405."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Receive, Scope, Send


class HeadRoute(APIRoute):
    """FastAPI's route, which takes HEAD for GET; the server leaves the body of the answer out.

    It is not among the route's methods: the API's description would have each operation twice.
    The description calls an operation what its function is called, unless it says otherwise.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        options["operation_id"] = options.get("operation_id") or endpoint.__name__
        super().__init__(path, endpoint, **options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for this route."""
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and self._takes_head_of(scope):
            match = Match.FULL
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to this route's path."""
        if self._takes_head_of(scope):
            await self.app(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    def _takes_head_of(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in (self.methods or ())
