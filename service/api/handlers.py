"""Turns every exception into the one error shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.api.disconnect import ClientGone
from service.errors import RequestError, ServiceError
from service.observability.requests import CANCELLED, OK, record_of

logger = logging.getLogger("carousel.errors")

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_UNION_BRANCH = re.compile(r"str|int|.*[-\[].*")
"""What pydantic calls the members of a union in an error's place: `str`, `list[int]`, `constrained-str`, our tags."""

MAX_MESSAGE_CHARACTERS = 300
"""A message may name a client's own field or tag, which may be as long as a body."""


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _unexpected)


def validation_message(errors: Sequence[Any]) -> str:
    """One sentence for the first thing wrong in a message: where, what, what is allowed. Never the value itself."""
    first: Mapping[str, Any] = errors[0]
    words = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":  # there the last word is the client's
        words = [word for word in words if not _UNION_BRANCH.fullmatch(word)]
    message = ": ".join([*filter(None, [".".join(words)]), str(first["msg"]).removeprefix("Value error, ")])
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = message[:MAX_MESSAGE_CHARACTERS] + "..."
    # A name may hold line ends, or half of a surrogate pair, which JSON can express and UTF-8 cannot.
    message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    return f"{message} (and {len(errors) - 1} more)" if len(errors) > 1 else message


def error_response(scope: Scope, error: ServiceError) -> JSONResponse:
    """An error as a client is told it, noted in the request's record."""
    record_of(scope).outcome = error.code
    headers = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
    if error.status == 401:  # RFC 6750, section 3
        headers["www-authenticate"] = "Bearer" if error.code == "missing_key" else 'Bearer error="invalid_token"'
    return JSONResponse(error.body(), error.status, headers=headers)


def _respond(request: Request, error: ServiceError) -> JSONResponse:
    return error_response(request.scope, error)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _respond(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, RequestError("invalid_request", validation_message(error.errors())))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    message = {
        "not_found": "there is no such path; /docs lists what there is",
        "method_not_allowed": f"{request.method} is not allowed here; /docs lists what is",
    }.get(code, str(error.detail))
    response = _respond(request, RequestError(code, message))
    response.headers.update(error.headers or {})
    return response


async def _client_gone(request: Request, _: Exception) -> Response:
    record = record_of(request.scope)
    if record.outcome == OK:  # else it was the server who left
        record.outcome = CANCELLED
    return Response(status_code=499)  # nobody is there to read it


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    response = _respond(
        request, ServiceError("internal_error", "the server failed on this request; it has been logged")
    )
    # Starlette calls this outside of all middleware, where RequestObserver no longer adds it.
    response.headers["x-request-id"] = record_of(request.scope).request_id
    return response
