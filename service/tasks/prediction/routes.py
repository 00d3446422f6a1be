"""Any recurrent network, in terms of its ports: rows in, rows out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.engine.feed import fed_steps, steps_as_bytes
from carousel.service.engine.parameters import Array, Ids, TensorParameters, Tensors
from carousel.service.engine.port import Request as EngineRequest
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.ports import step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.prediction.messages import PredictRequest, PredictResponse
from carousel.service.work.encoding import encode, encoder_ports
from carousel.service.work.generation import admit, run_to_end
from carousel.service.work.memories import Memories
from carousel.service.work.rows import NO_STEPS, array_of, as_json, asked_outputs, context_rows, ids_of

router = APIRouter(prefix="/v1/models/{model}", tags=["prediction"], route_class=JsonRoute)


@router.post("/predict", summary="What a network says of rows", responses=ERRORS, response_model=PredictResponse)
async def predict(request: Request, model: str, body: PredictRequest) -> Response:
    """Its outputs after the last step, or after each; from zeros, a session or a state token on."""
    served = find_model(request, model, "prediction")
    work = _predict(served, context_of(request).memories, body)
    return Response(await while_connected(request, work), media_type="application/json")


async def _predict(model: ServedModel, memories: Memories, body: PredictRequest) -> bytes:
    asked = asked_outputs(model, body.outputs)
    whole = {name: body.inputs.pop(name) for name in encoder_ports(model) if name in body.inputs}
    head: dict[str, Any] = {"model": model.name, "version": model.bundle.version}
    with admit(model, urgency=body.urgency) as place:
        if not model.bundle.manifest.step.graph:
            _require_nothing_of_steps(body)
            encoding = await encode(model, whole, batch=body.urgency.batch)
            told = {name: encoding.context[name] for name in asked}
            return await asyncio.to_thread(as_json, {**head, "steps": 0, "cached_steps": 0}, told)
        prompt, inputs = await asyncio.to_thread(_inputs, model, body)
        context, begun = context_rows(model, body.context), None
        if model.encoder is not None:
            encoding = await encode(model, whole, batch=body.urgency.batch)
            context, begun = encoding.context, encoding.snapshot
        async with memories.recall(model.identity, body.memory) as recall:
            beginning = Beginning(snapshot=recall.snapshot or begun)
            if beginning.snapshot is None and inputs and not body.each and context is None:
                beginning = model.prefixes.begin(prompt, body.cache_salt, steps_as_bytes(inputs))
            wanted = EngineRequest(
                prompt,
                TensorParameters(asked, each=body.each),
                inputs=inputs,
                snapshot=beginning.snapshot,
                context=context,
                keep_state=body.memory.keeps,
                checkpoints=beginning.checkpoints,
                consumed=beginning.length,
            )
            end = await run_to_end(model, place, wanted)
            beginning.keep(end.checkpoints)
            model.metrics.queued(place)
            assert isinstance(end.result, Tensors)
            if end.snapshot is not None:
                await recall.keep(end.snapshot, consumed=len(prompt))
            head |= {"steps": len(prompt), "cached_steps": beginning.length, **recall.told}
        place.cover()
        outputs = end.result.outputs
        if not body.each:
            outputs = {name: rows[-1] for name, rows in outputs.items()}
        return await asyncio.to_thread(as_json, head, outputs)


def _require_nothing_of_steps(body: PredictRequest) -> None:
    """Hold that a request to an encoder alone asks for no more than that."""
    alone = PredictRequest(outputs=body.outputs, priority=body.priority, timeout_seconds=body.timeout_seconds)
    for name, value in body:
        if value != getattr(alone, name):
            field = f"inputs.{next(iter(body.inputs))[:100]}" if body.inputs else name
            raise RequestError(
                "invalid_request", f"{field}: the model is an encoder, which takes its ports whole and keeps no state"
            )


def _inputs(model: ServedModel, body: PredictRequest) -> tuple[Ids, Mapping[str, Array]]:
    ports = step_ports(model.bundle)
    feeds = ports.head.feeds
    specs = ports.inputs if feeds is None else {feeds: StateSpec((), "int64")}
    longest = model.bundle.manifest.limits.max_prompt_tokens
    if specs and body.steps is not None:
        raise RequestError("invalid_request", NO_STEPS)
    for name, rows in body.inputs.items():
        if len(rows) > longest:
            raise RequestError(
                "prompt_too_long",
                f"inputs.{name}: has {len(rows):,} steps; this model takes up to {longest:,} "
                "(manifest limits.max_prompt_tokens); send it in parts, with a session",
            )
    try:
        given = {name: array_of(name, rows, specs.get(name)) for name, rows in body.inputs.items()}
        prompt, fed = fed_steps(specs, given, body.steps, model.bundle.manifest.step.non_finite)
        return (prompt, fed) if feeds is None else (ids_of(feeds, fed[feeds], ports.id_count), {})
    except ValueError as error:
        raise RequestError("invalid_request", f"inputs: {error}") from None
