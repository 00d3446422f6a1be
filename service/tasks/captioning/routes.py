"""Captions of images: at once, streamed as server-sent events, or as a picture of where the model looked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.models.codec.caption import caption_codec
from carousel.models.codec.image import ImageCodec
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.event_stream import EventStream, LastEvents, note, sse
from carousel.service.api.routes.plain_route import PlainRoute
from carousel.service.api.routes.responses import EVENTS, SvgResponse
from carousel.service.api.wire import frames, slices
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.api.wire.slices import LARGE_ANSWER
from carousel.service.engine.encoder.encoding import Encoding
from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import Place
from carousel.service.errors import RequestError, ServiceError
from carousel.service.observability.requests import record_of
from carousel.service.pictures.attention import attention_svg
from carousel.service.pictures.images import ImageReader
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.captioning.captions import (
    Caption,
    CaptionParameters,
    CaptionStream,
    check_attention,
    find_captions,
)
from carousel.service.tasks.captioning.form import Asked, read_asked
from carousel.service.tasks.captioning.frames import attention_map, token_json
from carousel.service.tasks.captioning.messages import CaptionFields, CaptionsResponse
from carousel.service.work.generation import Finished, admit, admit_many
from carousel.service.work.turns import in_turns

router = APIRouter(prefix="/v1/models/{model}/captions", tags=["captions"], route_class=PlainRoute)

_FILE = {"type": "string", "format": "binary"}
_OPTIONS = CaptionFields.model_json_schema()["properties"]
_BODY = {
    "required": True,
    "content": {  # JSON first: its examples can be filled in
        "application/json": {"schema": {"$ref": "#/components/schemas/CaptionsRequest"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": _FILE, "description": "Files."}, **_OPTIONS},
            },
            "examples": {"one": {"summary": "Three captions of one file", "value": {"image": ["photo.jpg"], "n": 3}}},
        },
    },
}
_EXTRA = {
    "requestBody": _BODY,
    # Every route takes this header. Of a route with two bodies generators of Python clients write what does not run
    # (openapi-python-client 0.29), unless something of the request may be left out.
    "parameters": [
        {
            "name": "traceparent",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "W3C Trace Context: makes the request part of the caller's trace.",
        }
    ],
}
_ANSWER = {
    "model": "scenes",
    "version": 1,
    "images": [
        {
            "captions": [
                {
                    "text": "a red circle",
                    "logprob": -0.21,
                    "score": -0.0525,
                    "finish_reason": "stop",
                    "tokens": [3, 4, 5],
                }
            ]
        }
    ],
}


@router.post(
    "",
    summary="Captions of images",
    openapi_extra=_EXTRA,
    responses={200: {"content": {"application/json": {"example": _ANSWER}, **EVENTS}}, **ERRORS},
    response_model=CaptionsResponse,
)
async def captions(request: Request, model: str) -> Response:
    """The best captions of each image; all images are captioned, or none is and the error says which is at fault."""
    served = find_model(request, model, "captioning")
    images = context_of(request).images
    asked = await read_asked(request)
    served = find_model(request, model, "captioning")  # there may be another version by now
    parameters = _parameters(asked.fields, served)
    if not asked.fields.stream:
        content = await while_connected(request, _captions(served, images, asked, parameters))
        return Response(content, media_type="application/json")
    if len(asked.files) > 1:
        raise RequestError("invalid_request", f"stream is for one image, and there are {len(asked.files):,}")
    async with AsyncExitStack() as places:
        overflow = asyncio.get_running_loop().create_future()
        place = places.enter_context(admit(served, urgency=asked.fields.urgency))
        work = _begin(served, place, images, asked, parameters, overflow)
        stream = await while_connected(request, work)
        places.enter_context(context_of(request).drain.ending(stream.cancel))
        return EventStream(
            _events(request, served, stream), places.pop_all(), overflow, batch=asked.fields.urgency.batch
        )


@router.post(
    "/attention.svg",
    summary="A picture of where the model looked",
    openapi_extra=_EXTRA,
    operation_id="attention_picture",
    responses=ERRORS,
    response_class=SvgResponse,
)
async def attention(request: Request, model: str) -> Response:
    """The image once for each word of its best caption, with light on where the model looked before saying it."""
    served = find_model(request, model, "captioning")
    check_attention(served)
    asked = await read_asked(request)
    served = find_model(request, model, "captioning")  # there may be another version by now
    check_attention(served)
    if len(asked.files) > 1 or asked.fields.n > 1 or asked.fields.stream:
        raise RequestError("invalid_request", "the picture is of one image and its best caption: no n, no stream")
    parameters = _parameters(asked.fields.model_copy(update={"attention": True}), served)
    picture = await while_connected(request, _picture(served, context_of(request).images, asked, parameters))
    headers = {"cache-control": "no-store", "content-security-policy": "default-src 'none'; img-src data:"}
    return SvgResponse(picture, headers=headers)


def _parameters(fields: CaptionFields, model: ServedModel) -> CaptionParameters:
    try:
        return fields.caption_parameters(model)
    except ValueError as error:
        raise RequestError("invalid_request", str(error)) from None


async def _captions(model: ServedModel, images: ImageReader, asked: Asked, parameters: CaptionParameters) -> str:
    with ExitStack() as places:
        # As many rows as there are at most, and as are free: a large request takes turns instead of everybody's place.
        urgency = asked.fields.urgency
        engine = model.engine.describe()
        most = engine.max_admitted_batch if urgency.batch else engine.max_admitted
        free = min(engine.max_rows, most - engine.admitted)
        wanted = min(len(asked.files), max(1, free // parameters.rows))
        admissions = admit_many(places, model, wanted, urgency, parameters.rows)
        encodings = await _encodings(model, images, asked)
        found = await in_turns(
            admissions,
            len(encodings),
            lambda place, index: find_captions(model, place, encodings[index], parameters),
        )
    looks = (one.attention for of_image in found for one in of_image)
    if sum(looked.size for looked in looks if looked is not None) < LARGE_ANSWER:
        return _answer(model, found, parameters, frames.dumps)
    return await asyncio.to_thread(_answer, model, found, parameters, slices.dumps)


def _answer(
    model: ServedModel, found: list[list[Caption]], parameters: CaptionParameters, dumps: Callable[[Any], str]
) -> str:
    """A CaptionsResponse as JSON."""
    return dumps(
        {
            "model": model.name,
            "version": model.bundle.version,
            "images": [{"captions": [_told(model, one, parameters) for one in of_image]} for of_image in found],
        }
    )


async def _encodings(model: ServedModel, images: ImageReader, asked: Asked) -> list[Encoding]:
    batch = asked.fields.urgency.batch
    if asked.many:
        return await images.encode_all(model, asked.files, "images", batch=batch)
    return [await images.encode(model, asked.files[0], batch=batch)]


def _told(model: ServedModel, caption: Caption, parameters: CaptionParameters) -> dict[str, Any]:
    """One CaptionInfo."""
    told: dict[str, Any] = {
        "text": caption.text,
        "logprob": caption.logprob,
        "score": caption.score,
        "finish_reason": caption.reason.value,
        "tokens": list(caption.tokens),
    }
    if parameters.attention:
        told["attention"] = [
            {"text": text, "map": attention_map(looked)}
            for text, looked in zip(
                _words(model, caption), [] if caption.attention is None else caption.attention, strict=True
            )
        ]
    return told


def _words(model: ServedModel, caption: Caption) -> list[str]:
    return [caption_codec(model.bundle).text.token_text(token).strip() for token in caption.tokens]


async def _begin(
    model: ServedModel,
    place: Place,
    images: ImageReader,
    asked: Asked,
    parameters: CaptionParameters,
    overflow: asyncio.Future[None],
) -> CaptionStream:
    """All that can be refused before a byte is answered."""
    encoding = await images.encode(model, asked.files[0], batch=place.batch)
    stream = CaptionStream(model, place, encoding, parameters, partial(note, overflow))
    stream.start()
    return stream


async def _events(request: Request, model: ServedModel, stream: CaptionStream) -> AsyncIterator[bytes]:
    """The stream's events. An error after the first byte is the last of them."""
    record, drain = record_of(request.scope), context_of(request).drain
    accepted = sse(frames.accepted(record.request_id, model, prompt_tokens=0))
    try:
        async for event in stream.events():
            if accepted:  # not before: what fails until then has a status of its own
                yield accepted
                accepted = b""
            if isinstance(event, Finished):
                end = sse(frames.finished(event))
                if event.reason is not FinishReason.CANCELLED:
                    yield LastEvents(end)
                    continue
                yield end
                raise drain.refusal()  # nobody else cancels it
            else:
                yield f"data: {token_json(event)}\n\n".encode()
    except ServiceError as error:
        if record.status is None:
            raise
        record.outcome = error.code
        yield LastEvents(sse(frames.error(error)))


async def _picture(model: ServedModel, images: ImageReader, asked: Asked, parameters: CaptionParameters) -> str:
    with admit(model, parameters.rows, asked.fields.urgency) as place:
        encoding = await images.encode(model, asked.files[0], batch=place.batch)
        (best,) = await find_captions(model, place, encoding, parameters)
        maps = np.zeros((0, 1, 1), np.float32) if best.attention is None else best.attention
        draw = partial(
            attention_svg,
            preprocessing=model.bundle.codec(ImageCodec).preprocessing,
            words=_words(model, best),
            maps=maps,
            title=f"{model.name} version {model.bundle.version}",
        )
        place.cover()  # the image is decoded once more
        return await images.use(asked.files[0], draw, batch=place.batch)
