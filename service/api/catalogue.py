"""What is served."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.context import context_of, find_model
from service.api.messages import ErrorBody, ModelInfo, ModelList, StateInfo
from service.repository import ServedModel

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="All served models")
async def list_models(request: Request) -> ModelList:
    """Each with its task, version, states, limits, validation figures and digest."""
    return ModelList(data=[_info(model) for model in context_of(request).repository.models.values()])


@router.get("/v1/models/{model}", summary="One served model", responses={404: {"model": ErrorBody}})
async def get_model(request: Request, model: str) -> ModelInfo:
    """Its task, version, states, limits, validation figures and digest."""
    return _info(find_model(request, model))


def _info(model: ServedModel) -> ModelInfo:
    bundle, manifest = model.bundle, model.bundle.manifest
    language = manifest.task == "language"
    return ModelInfo(
        id=model.name,
        task=manifest.task,
        version=bundle.version,
        digest=bundle.digest,
        precision=manifest.precision,
        vocabulary_size=bundle.text_codec.vocabulary_size if language else None,
        skills=None if language else list(bundle.interaction_codec.skills),
        states=[
            StateInfo(name=spec.name, shape=[size or 0 for size in spec.shape[1:]], dtype=spec.dtype)
            for spec in bundle.step.states
        ],
        limits=manifest.limits.model_dump(),
        decoding=manifest.decoding.model_dump() if language else None,
        validation=manifest.validation.model_dump() if manifest.validation else None,
        provenance=manifest.provenance.model_dump() if manifest.provenance else None,
    )
