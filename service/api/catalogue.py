"""What is served."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request

from carousel.models.codec.image import ImageCodec
from carousel.models.codec.interaction import InteractionCodec
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.wire.catalogue_messages import ModelInfo, ModelList, ServingInfo, StateInfo
from carousel.service.api.wire.messages import OpenAIErrorBody
from carousel.service.served.repository import ServedModel

ERRORS: dict[int | str, dict[str, type[OpenAIErrorBody]]] = {
    status: {"model": OpenAIErrorBody} for status in (401, 413, 429, 500, 503)
}
"""Of every route: what stands before it may refuse."""
BEAM = {"beam_width", "length_penalty"}
"""Decoding defaults that are of captions only."""

router = APIRouter(tags=["models"], route_class=HeadRoute)


@router.get("/v1/models", summary="All served models", responses=ERRORS)
async def list_models(request: Request) -> ModelList:
    """Each with its task, version, states, limits, validation figures, digest, and how it is run here."""
    return ModelList(data=[_info(model) for model in context_of(request).repository.models.values()])


@router.get("/v1/models/{model}", summary="One served model", responses={404: {"model": OpenAIErrorBody}, **ERRORS})
async def get_model(request: Request, model: str) -> ModelInfo:
    """Its task, version, states, limits, validation figures, digest, and how it is run here."""
    return _info(find_model(request, model))


def _info(model: ServedModel) -> ModelInfo:
    bundle, manifest = model.bundle, model.bundle.manifest
    captioning, tracing = manifest.task == "captioning", manifest.task == "tracing"
    attends = manifest.head.attends_port
    attention = None if attends is None else bundle.step.output(attends)
    return ModelInfo(
        id=model.name,
        task=manifest.task,
        version=bundle.version,
        digest=bundle.digest,
        precision=manifest.precision,
        vocabulary_size=None if tracing else bundle.output_size,
        skills=list(bundle.codec(InteractionCodec).skills) if tracing else None,
        preprocessing=bundle.codec(ImageCodec).preprocessing.model_dump() if captioning else None,
        attention=None if attention is None else [size or 0 for size in attention.shape[1:]],
        serving=ServingInfo(**asdict(model.serving)),
        state_bytes=model.identity.state_bytes,
        states=[
            StateInfo(name=spec.name, shape=[size or 0 for size in spec.shape[1:]], dtype=spec.dtype)
            for spec in bundle.states
        ],
        limits=manifest.limits.model_dump(exclude=set() if captioning else {"max_beam_width"}),
        decoding=None if tracing else manifest.decoding.model_dump(exclude=set() if captioning else BEAM),
        validation=dict(figures.served) if (figures := manifest.figures) is not None and figures.served else None,
        provenance=manifest.provenance.model_dump() if manifest.provenance else None,
    )
