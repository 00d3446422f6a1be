"""A route that hands its endpoint the request as it comes. Why not FastAPI's own is told in json_route.py."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from carousel.service.api.routes.head_route import HeadRoute


class PlainRoute(HeadRoute):
    """FastAPI's route, but for endpoints `(request, **path parameters, all text) -> Response` that read the body."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to this route's path."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)
