"""`predict`, of any model, in terms of its ports: rows in, rows out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.service.api.routes.context import Context, context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.api.wire.examples import SESSION
from carousel.service.api.wire.predict_messages import PredictRequest, PredictResponse, SequenceFields
from carousel.service.api.wire.slices import LARGE_ANSWER
from carousel.service.served.ports import live_ports
from carousel.service.served.repository import ServedModel
from carousel.service.work.rows import as_json, asked_outputs, context_ports, dumps, encoder_ports
from carousel.service.work.stepping import Asked, Stepped, take_all

router = APIRouter(prefix="/v1/models/{model}", tags=["models"], route_class=JsonRoute)


@router.post("/predict", summary="What a network says of rows", responses=ERRORS, response_model=PredictResponse)
async def predict(request: Request, model: str, body: PredictRequest) -> Response:
    """Its outputs after the last step, or after each; from zeros, a session or a state token on."""
    work = _predict(find_model(request, model), context_of(request), body)
    return Response(await while_connected(request, work), media_type="application/json")


async def _predict(model: ServedModel, context: Context, body: PredictRequest) -> bytes:
    if body.sequences is None:
        asked = [_asked(model, body, "")]
    else:
        asked = [_asked(model, one, f"sequences.{place}.") for place, one in enumerate(body.sequences)]
    most = context.settings.max_body_bytes
    told = await take_all(model, context.memories, asked, body.urgency, max_answer_bytes=most)
    if sum(array.size for one in told for array in one.outputs.values()) < LARGE_ANSWER:
        return _json(model, told, many=body.sequences is not None)
    return await asyncio.to_thread(_json, model, told, many=body.sequences is not None)


def _asked(model: ServedModel, fields: SequenceFields, where: str) -> Asked:
    return Asked(
        fields.inputs,
        asked_outputs(model, fields.outputs, where),
        fields.steps,
        fields.context,
        fields.each,
        fields.memory,
        fields.cache_salt,
        where,
    )


def _json(model: ServedModel, told: list[Stepped], *, many: bool) -> bytes:
    """A PredictResponse."""
    head = {"model": model.name, "version": model.bundle.version}
    parts = [
        as_json({**({} if many else head), "steps": one.steps, "cached_steps": one.cached, **one.told}, one.outputs)
        for one in told
    ]
    return parts[0] if not many else f'{dumps(head)[:-1]},"sequences":['.encode() + b",".join(parts) + b"]}"


def example(model: ServedModel) -> Mapping[str, Any] | None:
    """Bodies that work on a model as they are; None where they would be long."""
    if sum(spec.row_bytes for spec in context_ports(model).values()) > LARGE_ANSWER:
        return None
    whole = {
        name: np.zeros([size or 2 for size in spec.shape[1:]], spec.dtype).tolist()
        for name, spec in encoder_ports(model).items()
    }
    if not model.bundle.manifest.step.graph:
        return {"A whole input": {"inputs": whole}}
    rows = {name: np.zeros((2, *spec.shape), spec.dtype).tolist() for name, spec in live_ports(model.bundle).items()}
    context = {name: np.zeros(spec.shape, spec.dtype).tolist() for name, spec in context_ports(model).items()}
    body: dict[str, Any] = {"inputs": {**whole, **rows}} if whole or rows else {}
    body |= {} if rows else {"steps": 2}
    body |= {"context": context} if context else {}
    return {
        "Two steps, in a session": {**body, "session": f"{SESSION}-steps", "each": True},
        "Two sequences": {"sequences": [body, body]},
    }
