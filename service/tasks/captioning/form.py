"""What a captioning request's body asks, be it a form with files in it or JSON with files in base64."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from carousel.service.api.routes.disconnect import ClientGone
from carousel.service.api.routes.json_route import refuse_compressed
from carousel.service.api.routes.multipart import read_form
from carousel.service.api.wire.slices import LARGE, TooManyLists, loads
from carousel.service.api.wire.validation import invalid, parsed, printable
from carousel.service.errors import RequestError
from carousel.service.pictures.images import ImageFile
from carousel.service.tasks.captioning.messages import MAX_IMAGES, CaptionFields, CaptionsRequest

MAX_PARTS = 1000
MAX_FIELD_BYTES = 1000

_SEND_A_FORM = "send multipart/form-data with each file as image, or application/json"


@dataclass(frozen=True, slots=True)
class Asked:
    """Image files, undecoded, at least one; and what to make of them."""

    files: Sequence[ImageFile]
    many: bool
    """Whether an error must say which of them it is about."""
    fields: CaptionFields


async def read_asked(request: Request) -> Asked:
    """Read the body.

    Raises:
        RequestError: malformed_form, malformed_json or invalid_request.
        ClientGone: the client left while it sent.
    """
    refuse_compressed(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await _from_form(request)
        if kind == "application/json" or kind.endswith("+json"):
            content = await request.body()
            if len(content) < LARGE:
                return _from_json(content)
            return await asyncio.to_thread(_from_large_json, content)
    except ClientDisconnect:
        raise ClientGone from None
    seen = f"the content-type is {kind[:100]!a}" if kind else "there is no content-type"
    raise RequestError("invalid_request", f"{seen}; {_SEND_A_FORM}")


def _from_json(content: bytes) -> Asked:
    try:
        return _asked(CaptionsRequest.model_validate_json(content))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise _malformed(errors[0]["ctx"]["error"]) from None
        raise _refused(errors, parsed(content)) from None


def _from_large_json(content: bytes) -> Asked:
    """The same in slices."""
    try:
        value = loads(content)
    except TooManyLists as error:
        raise RequestError("invalid_request", f"the body holds {error}") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(getattr(error, "msg", "it could not be parsed")) from None
    try:
        return _asked(CaptionsRequest.model_validate(value))
    except ValidationError as error:
        raise _refused(error.errors(include_url=False), value) from None


def _asked(body: CaptionsRequest) -> Asked:
    return Asked(body.images or [body.image or ""], body.images is not None, body)


def _malformed(why: str) -> RequestError:
    return RequestError("malformed_json", f"the body is not JSON: {why}")


def _refused(errors: Sequence[Any], value: Any) -> RequestError:
    if errors[0]["type"] == "model_type":
        return RequestError("invalid_request", "the body must be a JSON object")
    return invalid(errors, value)


async def _from_form(request: Request) -> Asked:
    kind = request.headers["content-type"]
    parts = await read_form(kind, request.stream(), max_parts=MAX_PARTS, max_field_bytes=MAX_FIELD_BYTES)
    files: list[bytes] = []
    fields: dict[str, str] = {}
    for part in parts:
        if part.name in ("image", "images") and not part.is_file:
            raise RequestError(
                "invalid_request",
                f"{part.name}: is text, and nothing is fetched; send the file itself, as a part with a filename "
                "(curl -F image=@photo.jpg)",
            )
        if part.is_file:
            if part.name != "image":
                raise RequestError(
                    "invalid_request", f"{printable(part.name)}: is a file; allowed are files called image"
                )
            files.append(bytes(part.content))
        elif part.name in fields:
            raise RequestError("invalid_request", f"{printable(part.name)}: is given more than once; give it once")
        else:
            fields[part.name] = part.content.decode(errors="backslashreplace")
    try:
        options = CaptionFields.model_validate(fields, strict=False)  # a form has nothing but text
    except ValidationError as error:
        raise invalid(error.errors(include_url=False), fields) from None
    if not 1 <= len(files) <= MAX_IMAGES:
        raise RequestError(
            "invalid_request", f"image: the form has {len(files):,} files of that name; allowed are 1 to {MAX_IMAGES}"
        )
    return Asked(files, len(files) > 1, options)
