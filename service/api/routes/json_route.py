"""A route whose body is JSON: read, validated and handed over, and nothing more.

FastAPI solves every request's parameters anew: two exit stacks, a tree of dependencies, a parsed content type. Where a
step is a fraction of a millisecond that is most of an answer's cost. The routes with bodies need none of it, so they
take a request as this class finds it; what FastAPI is told about them, and with it the API's description, is the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from inspect import signature
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from carousel.service.api.routes.context import context_of, note_model
from carousel.service.api.routes.disconnect import ClientGone
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.wire.slices import LARGE, TooManyLists, loads
from carousel.service.api.wire.validation import invalid, printable
from carousel.service.errors import RequestError

NO_OBJECT = "the body must be a JSON object, sent with the header content-type: application/json"


class JsonRoute(HeadRoute):
    """FastAPI's route, but for endpoints `(request, body, **path parameters, all text) -> Response`.

    An endpoint that has no `body` is left to FastAPI; one whose `body` defaults to None needs none.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        body = get_type_hints(endpoint, include_extras=True).get("body")
        self._body: TypeAdapter[Any] | None = None if body is None else TypeAdapter(body)
        self._optional = body is not None and signature(endpoint).parameters["body"].default is None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to this route's path."""
        if self._body is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        note_model(request, scope["path_params"].get("model"))
        content = await _content(request, optional=self._optional)
        body = None if not content else await self._message(request, content)
        response = await self.endpoint(request, body=body, **scope["path_params"])
        await response(scope, receive, send)

    async def _message(self, request: Request, content: bytes) -> Any:
        """The message that a body holds. Raises RequestError."""
        assert self._body is not None
        value = await read_json(content)
        if isinstance(value, dict) and "model" not in request.path_params:
            note_model(request, value.get("model"))
        if value is None and self._optional:
            return None
        return await validated(self._body, value, content, context_of(request).settings.ignored_fields)


async def _content(request: Request, *, optional: bool) -> bytes:
    """The body; empty where there is none, and none is needed.

    Raises:
        ClientGone, RequestError
    """
    try:
        content = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    if not content and optional:
        return content
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    refuse_compressed(request)
    if not content or not (media_type == "application/json" or media_type.endswith("+json")):
        raise RequestError("invalid_request", NO_OBJECT)
    return content


def refuse_compressed(request: Request) -> None:
    """See that a body is sent as it is. Raises RequestError."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise RequestError(
            "invalid_request",
            f"the body is compressed (content-encoding: {printable(coding)}), which is not read here; send it as it is",
        )


async def read_json(content: bytes) -> Any:
    """What the JSON of a body says; of a large one, on a thread, in slices. Raises RequestError."""
    return await asyncio.to_thread(_value, content, loads) if len(content) >= LARGE else _value(content, json.loads)


async def validated(adapter: TypeAdapter[Any], value: Any, content: bytes, ignored: Collection[str] = ()) -> Any:
    """The message that `value` is, which was read from `content`; of a large one, on a thread. Raises RequestError."""
    if len(content) >= LARGE:
        return await asyncio.to_thread(_validated, adapter, value, ignored)
    return _validated(adapter, value, ignored)


def _value(content: bytes, parse: Callable[[bytes], Any]) -> Any:
    """What the JSON of a body says. Raises RequestError."""
    try:
        return parse(content)
    except json.JSONDecodeError as error:
        raise RequestError("malformed_json", f"the body is not JSON: {error.msg}") from None
    except TooManyLists as error:
        raise RequestError("invalid_request", f"the body holds {error}") from None
    except (ValueError, RecursionError):  # no UTF-8, a number of thousands of digits, a depth of thousands
        raise RequestError("malformed_json", "the body could not be parsed as JSON") from None


def _validated(adapter: TypeAdapter[Any], value: Any, ignored: Collection[str]) -> Any:
    if not isinstance(value, dict):
        raise RequestError("invalid_request", NO_OBJECT)
    try:
        return adapter.validate_python(value, context={"ignored": ignored})
    except ValidationError as error:
        raise invalid(error.errors(include_url=False), value) from None
