"""What is served."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.task import TASKS
from carousel.service.api.wire.catalogue_messages import ModelInfo, ModelList, ServingInfo, StateInfo
from carousel.service.api.wire.error_messages import OpenAIErrorBody
from carousel.service.served.repository import ServedModel

ERRORS: dict[int | str, dict[str, type[OpenAIErrorBody]]] = {
    status: {"model": OpenAIErrorBody} for status in (401, 413, 429, 500, 503)
}
"""Of every route: what stands before it may refuse."""
router = APIRouter(tags=["models"], route_class=HeadRoute)


@router.get("/v1/models", summary="All served models", responses=ERRORS)
async def list_models(request: Request) -> ModelList:
    """Each with its task, version, states, limits, validation figures, digest, and how it is run here."""
    return ModelList(data=[_info(model) for model in context_of(request).repository.models.values()])


@router.get("/v1/models/{model}", summary="One served model", responses={404: {"model": OpenAIErrorBody}, **ERRORS})
async def get_model(request: Request, model: str) -> ModelInfo:
    """Its task, version, states, limits, validation figures, digest, and how it is run here."""
    return _info(find_model(request, model))


def limits_of(model: ServedModel, *, beam: bool) -> dict[str, Any]:
    """The limits of a model, with those of a beam where its task searches one."""
    return model.bundle.manifest.limits.model_dump(exclude=set() if beam else {"max_beam_width"})


def sampling_defaults(model: ServedModel, *, beam: bool) -> dict[str, Any]:
    """The limits and decoding defaults of a model that samples, with those of a beam where its task searches one."""
    decoding = model.bundle.manifest.decoding.model_dump(exclude=set() if beam else {"beam_width", "length_penalty"})
    return {"limits": limits_of(model, beam=beam), "decoding": decoding}


def _info(model: ServedModel) -> ModelInfo:
    bundle, manifest = model.bundle, model.bundle.manifest
    attends, figures = manifest.head.attends_port, manifest.figures
    attention = None if attends is None else bundle.step.output(attends)
    info: dict[str, Any] = {
        # What a task says nothing of is null.
        **{name: None for name, field in ModelInfo.model_fields.items() if field.is_required()},
        "attention": None if attention is None else [size or 0 for size in attention.shape[1:]],
        "id": model.name,
        "task": manifest.task,
        "version": bundle.version,
        "digest": bundle.digest,
        "precision": manifest.precision,
        "serving": ServingInfo(**asdict(model.serving)),
        "state_bytes": model.identity.state_bytes,
        "states": [
            StateInfo(name=spec.name, shape=[size or 0 for size in spec.shape[1:]], dtype=spec.dtype)
            for spec in bundle.states
        ],
        "validation": dict(figures.served) if figures is not None and figures.served else None,
        "provenance": manifest.provenance.model_dump() if manifest.provenance else None,
        "limits": limits_of(model, beam=False),
        **(TASKS[manifest.task].catalogue(model) if manifest.task in TASKS else {}),
    }
    assert info.keys() <= ModelInfo.model_fields.keys(), "a field that ModelInfo lacks would be left out"
    return ModelInfo(**info)
