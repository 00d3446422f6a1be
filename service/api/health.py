"""Is the process alive, is it ready, how is it doing."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from carousel.service.api.routes.context import SERVER, context_of
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.wire.error_messages import ErrorBody
from carousel.service.errors import ErrorCode, Unavailable

router = APIRouter(tags=["health"], route_class=HeadRoute)
_METRICS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 413, 429, 500, 503)}


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"]


class Unhealthy(ErrorBody):
    """What is wrong, and with which models."""

    failures: Annotated[dict[str, str] | None, Field(description="By a model's name, why it does not run.")] = None


_HEALTH: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorBody},
    500: {"model": ErrorBody},
    503: {"model": Unhealthy, "description": "Which models fail, and why."},
}


@router.get(
    "/livez", summary="Whether the process and its engine threads are alive", responses=_HEALTH, response_model=Health
)
async def livez(request: Request) -> Response:
    """200 while the event loop answers and every engine's thread runs, else 503."""
    return _report(context_of(request).failures)


@router.get("/readyz", summary="Whether models are loaded and warm", responses=_HEALTH, response_model=Health)
async def readyz(request: Request) -> Response:
    """200 when every model is loaded, warm and able to run and the server is not shutting down, else 503."""
    context = context_of(request)
    return _report(context.unready, "shutting_down" if context.drain.begun else "model_unavailable")


@router.get("/metrics", summary="Prometheus metrics", responses=_METRICS, response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    text = await asyncio.to_thread(generate_latest, context_of(request).metrics.registry)  # takes milliseconds
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _report(failures: dict[str, str], code: ErrorCode = "model_unavailable") -> Response:
    """The one shape of errors, and beside it why each model that fails does."""
    if failures:
        message = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        models = {name: reason for name, reason in failures.items() if name != SERVER}
        return JSONResponse({**Unavailable(code, message).body(), **({"failures": models} if models else {})}, 503)
    return JSONResponse({"status": "ok"})
