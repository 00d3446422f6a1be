"""What a captioning request's body asks, be it a form with files in it or JSON with files in base64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from carousel.service.api.routes.disconnect import ClientGone
from carousel.service.api.routes.json_route import read_json, refuse_compressed, validated
from carousel.service.api.routes.multipart import read_form
from carousel.service.api.wire.validation import invalid, printable
from carousel.service.errors import RequestError
from carousel.service.pictures.images import ImageFile
from carousel.service.tasks.captioning.messages import MAX_IMAGES, CaptionFields, CaptionsRequest

MAX_PARTS = 1000
MAX_FIELD_BYTES = 1000

_MESSAGE = TypeAdapter(CaptionsRequest)
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
            body = await validated(_MESSAGE, await read_json(content), content)
            return Asked(body.images or [body.image or ""], body.images is not None, body)
    except ClientDisconnect:
        raise ClientGone from None
    seen = f"the content-type is {kind[:100]!a}" if kind else "there is no content-type"
    raise RequestError("invalid_request", f"{seen}; {_SEND_A_FORM}")


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
