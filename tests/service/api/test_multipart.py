"""Forms as they come: in pieces of any size, sound and damaged."""

import pytest

from carousel.service.api.routes.multipart import read_form
from carousel.service.errors import RequestError

LIMITS = {"max_parts": 3, "max_field_bytes": 9}
KIND = "multipart/form-data; boundary=b"


def _part(head: bytes, content: bytes) -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


FILE = b'Content-Disposition: form-data; name="image"; filename="a.jpg"'
FIELD = b'Content-Disposition: form-data; name="n"'
CONTENT = b"\x00\r\n--\r\n--x\r\n\r\n"
SOUND = _part(FILE + b"\r\nContent-Type: image/jpeg", CONTENT) + _part(FIELD, b"3") + b"--b--\r\n"
PARTS = [("image", True, CONTENT), ("n", False, b"3")]


async def _read(kind: str, body: bytes, size: int = 1 << 16):
    async def pieces():
        for start in range(0, len(body), size):
            yield body[start : start + size]

    parts = await read_form(kind, pieces(), **LIMITS)
    return [(part.name, part.is_file, bytes(part.content)) for part in parts]


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 16])
@pytest.mark.parametrize(
    ("kind", "body", "parts"),
    [
        (KIND, SOUND, PARTS),
        ('multipart/form-data; boundary="b"', SOUND, PARTS),
        (KIND + "; charset=utf-8", SOUND, PARTS),
        (KIND, SOUND.removesuffix(b"\r\n"), PARTS),
        (KIND, SOUND.replace(b"Content-Disposition", b"content-disposition"), PARTS),
        (KIND, _part(FILE, b"") + b"--b--\r\n", [("image", True, b"")]),
        (KIND, _part(FIELD + b"\r\nX-Other: 1", b"1") + b"--b--\r\n", [("n", False, b"1")]),
        (
            KIND,
            _part(b'Content-Disposition: form-data; name="\xc3\xa4\xff"; filename=""', b"x--b") + b"--b--",
            [("\u00e4\\xff", True, b"x--b")],
        ),
    ],
)
async def test_form_is_its_parts_in_order_whatever_pieces_it_comes_in(kind, body, parts, size):
    assert await _read(kind, body, size) == parts


@pytest.mark.parametrize("size", [1, 1 << 16])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", SOUND),
        (KIND, b""),
        (KIND, b"nonsense"),
        (KIND, SOUND[:-8]),
        (KIND, _part(b"Content-Disposition: form-data", b"1") + b"--b--\r\n"),
        (KIND, _part(FIELD, b"0123456789") + b"--b--\r\n"),
        (KIND, _part(FIELD, b"1") * 4 + b"--b--\r\n"),
    ],
)
async def test_damaged_form_is_refused(kind, body, size):
    with pytest.raises(RequestError) as error:
        await _read(kind, body, size)
    assert error.value.code == "malformed_form"
