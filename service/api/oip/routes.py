"""The routes of the Open Inference Protocol (version 2, REST)."""

from __future__ import annotations

import asyncio
import math
import re
import zlib
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from carousel import __version__
from carousel.service.api.oip.infer import Sequence, infer, input_ports, output_ports
from carousel.service.api.oip.messages import (
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    OipError,
    Ready,
    RequestParameters,
    ServerMetadata,
)
from carousel.service.api.oip.tensors import JSON_LENGTH, read_raw, read_tensors, refuse, write_tensors
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import ClientGone, while_connected
from carousel.service.api.routes.json_route import read_json, refuse_compressed, validated
from carousel.service.api.routes.plain_route import PlainRoute
from carousel.service.api.wire.error_bodies import OIP_PATH
from carousel.service.api.wire.slices import LARGE
from carousel.service.engine.port import Urgency
from carousel.service.errors import RequestError, Unavailable
from carousel.service.served.repository import ServedModel

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "sequence", "sequence(string_id)")
REPOSITORY_EXTENSION = "model_repository"
RESERVED = ("headers",)
CODINGS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""Of bodies, and what zlib is told of them."""
REFUSED = re.compile(r"\s*q=0(\.0*)?\s*")
"""What Accept-Encoding says behind a coding that is not to be taken."""
WORTH_PACKING = 1024
"""Bytes of an answer: of fewer hardly any are saved."""
TRITONS = "triton_"
"""What parameters begin with that mean something to that server."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OipError} for status in (400, 401, 404, 409, 410, 413, 422, 429, 500, 503, 504)
}
_ADAPTER = TypeAdapter(InferRequest)
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"JSON, and behind it the bytes of tensors: the header {JSON_LENGTH} says where it ends.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
    }
}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter(prefix=OIP_PATH, tags=["open inference protocol"], route_class=PlainRoute)


@router.get("", summary="Who answers", operation_id="server_metadata", response_model=ServerMetadata, responses=_ERRORS)
async def server_metadata(request: Request) -> Response:
    """The server's name and version, and the protocol's extensions that it knows."""
    extensions = [*EXTENSIONS, *([REPOSITORY_EXTENSION] if context_of(request).settings.admin_key else [])]
    return JSONResponse({"name": "carousel", "version": __version__, "extensions": extensions})


@router.get("/health/live", summary="Whether it runs", operation_id="oip_live", response_model=Live, responses=_ERRORS)
async def live(request: Request) -> Response:
    """As /livez."""
    return _health(context_of(request).failures, {"live": True})


@router.get(
    "/health/ready",
    summary="Whether it can be asked",
    operation_id="oip_ready",
    response_model=Ready,
    responses=_ERRORS,
)
async def ready(request: Request) -> Response:
    """As /readyz."""
    return _health(context_of(request).unready, {"ready": True})


@router.get(
    "/models/{model}",
    summary="A model's ports",
    operation_id="model_metadata",
    response_model=ModelMetadata,
    responses=_ERRORS,
)
@router.get("/models/{model}/versions/{version}", include_in_schema=False)
async def metadata(request: Request, model: str, version: str | None = None) -> Response:
    """Name, version and ports of a model that is served; states are no ports."""
    served = _find(request, model, version)
    told = ModelMetadata(
        name=served.name,
        versions=[str(served.bundle.version)],
        platform=PLATFORM,
        inputs=list(input_ports(served).values()),
        outputs=list(output_ports(served).values()),
    )
    return Response(told.model_dump_json(), media_type="application/json")


@router.get(
    "/models/{model}/ready",
    summary="Whether a model can be asked",
    operation_id="model_ready",
    response_model=ModelReady,
    responses=_ERRORS,
)
@router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """503 where its engine does not run."""
    served = _find(request, model, version)
    failures = {} if served.failure is None else {served.name: served.failure}
    return _health(failures, {"name": served.name, "ready": True})


@router.post(
    "/models/{model}/infer",
    summary="A step of each row, or the next of a sequence",
    operation_id="infer",
    openapi_extra=_BODY,
    response_model=InferResponse,
    responses={**_BYTES, **_ERRORS},
)
@router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
async def infer_rows(request: Request, model: str, version: str | None = None) -> Response:
    """Without a sequence each row is one of one step; a sequence's state is kept as a session."""
    served = _find(request, model, version)
    return await while_connected(request, _infer(request, served, await _content(request)))


async def _infer(request: Request, model: ServedModel, content: bytes) -> Response:
    ports, length = input_ports(model), _json_length(request, content)
    if length == 0:
        asked = InferRequest(inputs=[], parameters=RequestParameters(binary_data_output=True))
        tensors = read_raw(content, ports)
    else:
        text = content[:length]
        asked = await validated(_ADAPTER, await read_json(text), text)
        read = partial(read_tensors, asked.inputs, content[length:], ports)
        tensors = await asyncio.to_thread(read) if length >= LARGE else read()
    _check_parameters(asked)
    wanted = _outputs(model, asked)
    parameters = asked.parameters
    urgency = Urgency(parameters.priority > 1, parameters.timeout / 1e6 if parameters.timeout else math.inf)
    results = await infer(
        model,
        context_of(request).memories,
        tensors,
        tuple(wanted),
        _sequence(parameters),
        urgency,
        max_answer_bytes=context_of(request).settings.max_body_bytes,
    )
    head = {"model_name": model.name, "model_version": str(model.bundle.version)}
    head |= {"id": asked.id} if asked.id else {}
    answer, json_bytes = await asyncio.to_thread(write_tensors, head, results, wanted)
    headers = {"vary": "accept-encoding"}
    coding = _accepted(request.headers.get("accept-encoding", ""))
    if coding is not None and len(answer) >= WORTH_PACKING:
        answer = await asyncio.to_thread(zlib.compress, answer, zlib.Z_BEST_SPEED, CODINGS[coding])
        headers["content-encoding"] = coding
    if json_bytes is None:
        return Response(answer, media_type="application/json", headers=headers)
    headers[JSON_LENGTH] = str(json_bytes)
    return Response(answer, media_type="application/octet-stream", headers=headers)


def _find(request: Request, name: str, version: str | None) -> ServedModel:
    model = find_model(request, name)
    if version is not None and version != str(model.bundle.version):
        raise RequestError(
            "unknown_version",
            f"version {version[:20]!r} of {model.name} is not served; version {model.bundle.version} is",
        )
    return model


def _health(failures: dict[str, str], told: dict[str, Any]) -> Response:
    if failures:
        raise Unavailable("model_unavailable", "; ".join(f"{name}: {reason}" for name, reason in failures.items()))
    return JSONResponse(told)


async def _content(request: Request) -> bytes:
    """A body, as it was before it was compressed, if it was; which may be as long as one that was not."""
    try:
        content = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    coding = request.headers.get("content-encoding", "").strip().lower()
    window = CODINGS.get(coding)
    if window is None:
        refuse_compressed(request)
        return content
    most, packed = context_of(request).settings.max_body_bytes, zlib.decompressobj(window)
    try:
        plain = await asyncio.to_thread(packed.decompress, content, most + 1)
    except zlib.error:
        plain = b""
    if len(plain) > most:
        raise RequestError("body_too_large", f"the body unpacks to more than the {most:,} bytes that are allowed")
    if not packed.eof or packed.unused_data:
        raise refuse(f"the body is not one whole {coding} stream, as its content-encoding says")
    return plain


def _accepted(said: str) -> str | None:
    """The first coding that a client takes, of those that are known here."""
    parts = (part.partition(";") for part in said.lower().split(","))
    names = (name.strip() for name, _, quality in parts if not REFUSED.fullmatch(quality))
    return next((name for name in names if name in CODINGS), None)


def _json_length(request: Request, content: bytes) -> int:
    """How many bytes of a body are JSON."""
    said = request.headers.get(JSON_LENGTH)
    if said is None:
        return len(content)
    if not (said.isascii() and said.isdigit()) or int(said) > len(content):
        raise refuse(f"{JSON_LENGTH} is {said[:20]!r}; allowed is a number of bytes, of the {len(content):,} sent")
    return int(said)


def _check_parameters(asked: InferRequest) -> None:
    """Refuse what the protocol has reserved and this server does not do: who asks for it counts on it."""
    parts = [asked.parameters, *(tensor.parameters for tensor in (*asked.inputs, *(asked.outputs or ())))]
    for name in (name for part in parts for name in part.model_extra or ()):
        if name in RESERVED or name.startswith(TRITONS):
            raise refuse(f"parameter {name[:100]!r} is not supported")
        if name in ("classification", "shared_memory_region"):
            raise refuse(f"parameter {name!r} is of an extension that this server has not (GET {OIP_PATH})")


def _outputs(model: ServedModel, asked: InferRequest) -> dict[str, bool]:
    """The outputs that are wanted, and which of them as bytes."""
    known, as_bytes = output_ports(model), asked.parameters.binary_data_output
    if not asked.outputs:
        return dict.fromkeys(known, as_bytes)
    wanted: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in known:
            raise refuse(f"there is no output {output.name[:100]!r}; outputs are {', '.join(known)}")
        if output.name in wanted:
            raise refuse(f"output {output.name!r} is asked for twice")
        own = output.parameters.binary_data
        wanted[output.name] = as_bytes if own is None else own
    return wanted


def _sequence(parameters: RequestParameters) -> Sequence | None:
    if parameters.sequence_id in (0, ""):
        if parameters.sequence_start or parameters.sequence_end:
            raise refuse("sequence_start and sequence_end need a sequence_id: a number above 0, or a text")
        return None
    return Sequence(parameters.sequence_id, parameters.sequence_start, parameters.sequence_end)
