"""What the repository holds and what is served of it; load and unload. For who has the admin key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from carousel.service.api.routes.context import context_of
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.stream.handshake import key_of
from carousel.service.api.wire.error_messages import ErrorBody
from carousel.service.keys.admin import check_admin
from carousel.service.served.repository import Refusal, ServedModel

PREFIX = "/v1/repository"


class AdminRoute(JsonRoute):
    """A route that asks for the admin key before anything else; an API key is no help."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to this route's path."""
        require_admin(scope)
        await super().handle(scope, receive, send)


def require_admin(scope: Scope) -> None:
    """Let nobody pass but who has the admin key. Raises RequestError."""
    admin_key = context_of(Request(scope)).settings.admin_key
    assert admin_key is not None, "the routes are there where the key is"
    check_admin(key_of(scope), admin_key.get_secret_value())


router = APIRouter(
    prefix=PREFIX,
    tags=["repository"],
    route_class=AdminRoute,
    responses={status: {"model": ErrorBody} for status in (401, 403, 413, 500, 503)},
)
_REFUSED: dict[int | str, dict[str, type[ErrorBody]]] = {status: {"model": ErrorBody} for status in (404, 422, 503)}


class LoadRequest(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[
        int | None, Field(ge=1, strict=True, description="An older one rolls back; the newest where none is given.")
    ] = None


class Serving(BaseModel):
    """What a model's new requests are given; null where it is not served any more."""

    model: str
    version: int | None
    digest: str | None


class RefusedVersion(BaseModel):
    """A version that was not loaded, and why."""

    version: Annotated[int | None, Field(description="Null where the model's directory cannot be listed.")]
    reason: str


class RepositoryModel(BaseModel):
    """One model: in the repository, served, or both."""

    model: str
    published: Annotated[list[int], Field(description="Versions in the repository, ascending.")]
    served: Annotated[int | None, Field(description="The version that new requests are given.")]
    digest: Annotated[str | None, Field(description="Of the version served.")]
    failure: Annotated[str | None, Field(description="Why the version served does not run.")]
    ending: Annotated[list[int], Field(description="Versions served before, with requests that still run.")]
    refused: Annotated[RefusedVersion | None, Field(description="What was to be loaded last and was refused.")]


class RepositoryList(BaseModel):
    """All models."""

    models: list[RepositoryModel]


@router.get("", summary="What the repository holds and what is served")
async def get_repository(request: Request) -> RepositoryList:
    """Each model with its versions, on disk and in memory."""
    context = context_of(request)
    listing = await context.reloads.published()
    serving, refusals = context.repository.models, context.repository.refusals
    ending: dict[str, list[int]] = {}
    for model in context.repository.retiring.values():
        ending.setdefault(model.name, []).append(model.bundle.version)
    found = []
    for name in sorted({*listing.versions, *listing.unreadable, *serving, *ending}):
        served, refusal = serving.get(name), refusals.get(name)
        if name in listing.unreadable:  # which may be news
            refusal = Refusal(None, listing.unreadable[name])
        found.append(
            RepositoryModel(
                model=name,
                published=listing.versions.get(name, []),
                served=None if served is None else served.bundle.version,
                digest=None if served is None else served.bundle.digest,
                failure=None if served is None else served.failure,
                ending=sorted(ending.get(name, [])),
                refused=None if refusal is None else RefusedVersion(version=refusal.version, reason=refusal.reason),
            )
        )
    return RepositoryList(models=found)


@router.post(
    "/models/{model}/load",
    summary="Serve a version of a model",
    operation_id="load_model",
    openapi_extra={"requestBody": {"required": True}},  # {} will do; generated clients stumble over what may be absent
    responses={**_REFUSED, 400: {"model": ErrorBody}},
    response_model=Serving,
)
async def load(request: Request, model: str, body: LoadRequest | None = None) -> Response:
    """Load, verify and warm a version, then give it to new requests; those that run end on the version they have."""
    served: ServedModel = await context_of(request).reloads.load(model, None if body is None else body.version)
    serving = Serving(model=served.name, version=served.bundle.version, digest=served.bundle.digest)
    return Response(serving.model_dump_json(), media_type="application/json")


@router.post("/models/{model}/unload", summary="Serve a model no more", operation_id="unload_model", responses=_REFUSED)
async def unload(request: Request, model: str) -> Serving:
    """New requests find no such model; those that run end by themselves."""
    served = await context_of(request).reloads.unload(model)
    return Serving(model=served.name, version=None, digest=None)
