"""The model repository, as the Open Inference Protocol's extension has it. For who has the admin key."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from carousel.service.api.oip.messages import IndexEntry, OipError
from carousel.service.api.oip.tensors import refuse
from carousel.service.api.repository import get_repository, require_admin
from carousel.service.api.routes.context import context_of
from carousel.service.api.routes.plain_route import PlainRoute
from carousel.service.api.wire.error_bodies import OIP_PATH
from carousel.service.errors import RequestError

OIP_REPOSITORY = f"{OIP_PATH}/repository"


class _AdminRoute(PlainRoute):
    """A route that asks for the admin key before anything else."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to this route's path."""
        require_admin(scope)
        await super().handle(scope, receive, send)


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OipError} for status in (400, 401, 403, 404, 413, 422, 500, 503)
}
router = APIRouter(prefix=OIP_REPOSITORY, tags=["open inference protocol"], route_class=_AdminRoute)


@router.post(
    "/index", summary="Models and their versions", operation_id="repository_index", response_model=list[IndexEntry],
    responses=_ERRORS,
)  # fmt: skip
async def index(request: Request) -> Response:
    """Each version of each model, and whether it is served; with `ready` those alone that are."""
    ready = (await _body(request, {"ready"})).get("ready", False)
    entries = []
    for model in (await get_repository(request)).models:
        for version in model.published:
            served = version == model.served and model.failure is None
            refused = model.refused is not None and model.refused.version == version
            reason = (model.failure or "") if version == model.served else ""
            if refused and model.refused is not None:
                reason = model.refused.reason
            if served or not ready:
                state = "READY" if served else "UNAVAILABLE"
                entries.append(IndexEntry(name=model.model, version=str(version), state=state, reason=reason))
    return JSONResponse([entry.model_dump() for entry in entries])


@router.post(
    "/models/{model}/load",
    summary="Serve the newest version",
    operation_id="oip_load",
    response_model=dict[str, str],
    responses=_ERRORS,
)
async def load(request: Request, model: str) -> Response:
    """As /v1/repository; a model's configuration is its manifest, and nothing of it can be said here."""
    if (await _body(request, {"parameters"})).get("parameters"):
        raise refuse("a model is loaded as its manifest says; parameters are not supported")
    await context_of(request).reloads.load(model, None)
    return JSONResponse({})


@router.post(
    "/models/{model}/unload",
    summary="Serve it no more",
    operation_id="oip_unload",
    response_model=dict[str, str],
    responses=_ERRORS,
)
async def unload(request: Request, model: str) -> Response:
    """As /v1/repository. No model depends on another one."""
    await _body(request, {"parameters"})
    await context_of(request).reloads.unload(model)
    return JSONResponse({})


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    """The JSON of a request, which may have none."""
    content = await request.body()
    try:
        value = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        raise RequestError("malformed_json", "the body could not be parsed as JSON") from None
    if not isinstance(value, dict) or not value.keys() <= known:
        raise refuse(f"the body may be a JSON object of {', '.join(sorted(known))}")
    return value
