"""Is the process alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from service.api.catalogue import ERRORS
from service.api.context import context_of

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Whether the process and its engine threads are alive")
async def livez(request: Request) -> Response:
    """200 while the event loop answers and every engine's thread runs, else 503."""
    return _report(context_of(request).failures)


@router.get("/readyz", summary="Whether models are loaded and warm")
async def readyz(request: Request) -> Response:
    """200 when every model is loaded, warm and able to run and the server is not shutting down, else 503."""
    context = context_of(request)
    failures = context.failures
    if not context.ready:
        failures["server"] = "is starting or shutting down"
    return _report(failures)


@router.get("/metrics", summary="Prometheus metrics", responses=ERRORS)
async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(generate_latest(context_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _report(failures: dict[str, str]) -> Response:
    if failures:
        return JSONResponse({"status": "failing", "failures": failures}, 503)
    return JSONResponse({"status": "ok"})
