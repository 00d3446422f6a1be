"""A multipart form, kept in memory: its length is bounded before it is read, and a disk may not be there.

What browsers, curl and HTTP libraries send of one small file is cut at its boundaries here; a form that says anything
out of the ordinary, or comes in pieces, is read by a parser of all that is allowed, which takes longer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from carousel.service.errors import RequestError


@dataclass(slots=True)
class Part:
    """One part of a form."""

    name: str
    is_file: bool
    """Whether it came with a filename."""
    content: bytearray = field(default_factory=bytearray)


async def read_form(
    content_type: str, body: AsyncIterator[bytes], *, max_parts: int, max_field_bytes: int
) -> list[Part]:
    """The parts of a form, in their order.

    Args:
        content_type: the header, which names the boundary between the parts.
        body: as it comes.
        max_parts: how many there may be.
        max_field_bytes: how long one that is no file may be.

    Raises:
        RequestError: malformed_form.
    """
    form = _Form(max_parts, max_field_bytes)
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("its content-type names no boundary")
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_end,
                "on_part_data": form.data,
                "on_end": form.end,
            },
        )
        async for chunk in body:
            parser.write(chunk)
    except FormParserError as error:
        raise _malformed(" ".join(str(error).split())[:200]) from None
    if not form.ended:
        raise _malformed("it breaks off before its last boundary")
    return form.parts


class _Form:
    """What the parser calls."""

    def __init__(self, max_parts: int, max_field_bytes: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._max_field_bytes = max_field_bytes
        self._name, self._value = bytearray(), bytearray()
        self._disposition = b""

    def begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise _malformed(f"it has more than {self._max_parts:,} parts")
        self._disposition = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise _malformed(f"part {len(self.parts)} has no name")
        self.parts.append(Part(name.decode(errors="backslashreplace"), b"filename" in options))

    def data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.content += memoryview(data)[start:end]
        if not part.is_file and len(part.content) > self._max_field_bytes:
            raise _malformed(
                f"part {len(self.parts) - 1} is no file and has more than {self._max_field_bytes:,} bytes; "
                "a file comes with a filename"
            )

    def end(self) -> None:
        self.ended = True


def _malformed(what: str) -> RequestError:
    return RequestError("malformed_form", f"the form cannot be read: {what}")
