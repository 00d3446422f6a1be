"""Any recurrent network, in terms of its ports: rows in, rows out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.engine.feed import as_port, fed_steps, steps_as_bytes
from carousel.service.engine.parameters import Array, Ids, TensorParameters, Tensors
from carousel.service.engine.port import Request as EngineRequest
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.ports import row_spec, step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.prediction.messages import PredictRequest, PredictResponse
from carousel.service.work.generation import admit, run_to_end
from carousel.service.work.memories import Memories

PIECE = 4096
"""Rows that are made an array, or lists, at a time: another thread has the interpreter's lock in between."""

router = APIRouter(prefix="/v1/models/{model}", tags=["prediction"], route_class=JsonRoute)


@router.post("/predict", summary="What a network says of rows", responses=ERRORS, response_model=PredictResponse)
async def predict(request: Request, model: str, body: PredictRequest) -> Response:
    """Its outputs after the last step, or after each; from zeros, a session or a state token on."""
    served = find_model(request, model, "prediction")
    work = _predict(served, context_of(request).memories, body)
    return Response(await while_connected(request, work), media_type="application/json")


async def _predict(model: ServedModel, memories: Memories, body: PredictRequest) -> bytes:
    asked = _outputs(model, body.outputs)
    with admit(model, urgency=body.urgency) as place:
        prompt, inputs = await asyncio.to_thread(_inputs, model, body)
        context = _context(model, body.context)
        async with memories.recall(model.identity, body.memory) as recall:
            beginning = Beginning(snapshot=recall.snapshot)
            if recall.snapshot is None and inputs and not body.each and context is None:
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
            told = recall.told
        place.cover()
        counts = {"steps": len(prompt), "cached_steps": beginning.length}
        head = {"model": model.name, "version": model.bundle.version, **counts, **told}
        return await asyncio.to_thread(_json, head, end.result.outputs, each=body.each)


def _outputs(model: ServedModel, asked: list[str] | None) -> tuple[str, ...]:
    known = model.bundle.manifest.head.outputs
    for place, name in enumerate(asked or ()):
        if name not in known:
            raise RequestError(
                "invalid_request", f"outputs.{place}: there is no output {name[:100]!r}; outputs are {', '.join(known)}"
            )
    return known if asked is None else tuple(dict.fromkeys(asked))


def _inputs(model: ServedModel, body: PredictRequest) -> tuple[Ids, Mapping[str, Array]]:
    specs = step_ports(model.bundle).inputs
    longest = model.bundle.manifest.limits.max_prompt_tokens
    if specs and body.steps is not None:
        raise RequestError("invalid_request", "steps: the model has inputs, and takes as many steps as they have rows")
    for name, rows in body.inputs.items():
        if len(rows) > longest:
            raise RequestError(
                "prompt_too_long",
                f"inputs.{name}: has {len(rows):,} steps; this model takes up to {longest:,} "
                "(manifest limits.max_prompt_tokens); send it in parts, with a session",
            )
    try:
        given = {name: _array(name, rows, specs.get(name)) for name, rows in body.inputs.items()}
        return fed_steps(specs, given, body.steps)
    except ValueError as error:
        raise RequestError("invalid_request", f"inputs: {error}") from None


def _context(model: ServedModel, given: Mapping[str, Any]) -> Mapping[str, Array] | None:
    specs = {spec.name: row_spec(spec) for spec in model.bundle.context}
    names = ", ".join(specs) or "none"
    rows = {}
    for name in [*given, *specs]:
        if name not in specs:
            raise RequestError("invalid_request", f"context: there is no port {name[:100]!r}; ports are {names}")
        if name not in given:
            raise RequestError("invalid_request", f"context: port {name!r} is missing; ports are {names}")
        try:
            row = _array(name, [given[name]], specs[name])[0]
            if row.shape != specs[name].shape:
                raise ValueError(f"input {name!r} is {list(row.shape)}; allowed is {list(specs[name].shape)}")
            rows[name] = as_port(name, row, specs[name].dtype)
        except ValueError as error:
            raise RequestError("invalid_request", f"context: {error}") from None
    return rows or None


def _array(name: str, rows: list[Any], spec: StateSpec | None) -> Array:
    """Rows of JSON as an array of their own type."""
    if spec is None or not rows:
        return np.zeros((len(rows),))
    pieces = []
    for start in range(0, len(rows), PIECE):
        try:
            piece = np.asarray(rows[start : start + PIECE])
        except ValueError:
            raise ValueError(f"input {name!r} has rows of unequal lengths; a row is {list(spec.shape)}") from None
        if piece.dtype.kind not in "biuf":
            raise ValueError(f"input {name!r} holds what is no number; a row is {spec.dtype}{list(spec.shape)}")
        if piece.shape[1:] != spec.shape:
            raise ValueError(f"input {name!r} has rows {list(piece.shape[1:])}; allowed is {list(spec.shape)}")
        if (piece.dtype.kind == "b") != (spec.dtype == "bool"):
            raise ValueError(f"input {name!r} is {piece.dtype}; allowed is {spec.dtype}")
        pieces.append(piece)
    return np.concatenate(pieces)


def _json(head: Mapping[str, Any], outputs: Mapping[str, Array], *, each: bool) -> bytes:
    """A PredictResponse."""
    told = []
    for name, rows in outputs.items():
        if each:
            pieces = (_dumps(rows[start : start + PIECE].tolist())[1:-1] for start in range(0, len(rows), PIECE))
            told.append(f"{_dumps(name)}:[{','.join(pieces)}]")
        else:
            told.append(f"{_dumps(name)}:{_dumps(rows[-1].tolist())}")
    return f'{_dumps(head)[:-1]},"outputs":{{{",".join(told)}}}}}'.encode()


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
