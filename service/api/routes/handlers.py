"""Turns every exception into the one error shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from carousel.service.api.routes.disconnect import ClientGone
from carousel.service.api.wire.error_bodies import answer
from carousel.service.api.wire.validation import invalid
from carousel.service.errors import ErrorCode, RequestError, ServiceError
from carousel.service.observability.outcomes import CANCELLED, OK
from carousel.service.observability.requests import record_of

_HTTP_CODES: dict[int, ErrorCode] = {404: "not_found", 405: "method_not_allowed"}


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientGone, _client_gone)


def error_response(scope: Scope, error: ServiceError) -> JSONResponse:
    """An error as a client is told it, noted in the request's record."""
    record_of(scope).outcome = error.code
    told = answer(error, scope["path"])
    return JSONResponse(told.body, told.status, headers=told.headers)


def _respond(request: Request, error: ServiceError) -> JSONResponse:
    return error_response(request.scope, error)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _respond(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, invalid(error.errors(), None))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code: ErrorCode = _HTTP_CODES.get(error.status_code, "invalid_request")
    message = {
        "not_found": "there is no such path; /docs lists what there is",
        "method_not_allowed": f"{request.method} is not allowed here; /docs lists what is",
    }.get(code, str(error.detail))
    response = _respond(request, RequestError(code, message))
    response.headers.update(error.headers or {})
    if code == "method_not_allowed":
        response.headers["allow"] = ", ".join(sorted(_allowed_methods(request)))
    return response


def _allowed_methods(request: Request) -> set[str]:
    """Of all routes that a path has: Starlette knows those of the first."""
    found = {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
    return found | {"HEAD"} if "GET" in found else found


async def _client_gone(request: Request, _: Exception) -> Response:
    record = record_of(request.scope)
    if record.outcome == OK:  # else it was the server who left
        record.outcome = CANCELLED
    return Response(status_code=499)  # nobody is there to read it
