"""The short way of reading a form against the parser of all that is allowed."""

import random

import pytest

from service.api.multipart import cut_form, read_form
from service.errors import RequestError

LIMITS = {"max_parts": 3, "max_field_bytes": 9}
KIND = "multipart/form-data; boundary=b"


def _part(head: bytes, content: bytes) -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


FILE = b'Content-Disposition: form-data; name="image"; filename="a.jpg"'
FIELD = b'Content-Disposition: form-data; name="n"'
SOUND = _part(FILE + b"\r\nContent-Type: image/jpeg", b"\x00\r\n--\r\n--x\r\n\r\n") + _part(FIELD, b"3") + b"--b--\r\n"


async def _read(kind: str, body: bytes):
    async def pieces():
        yield body

    try:
        parts = await read_form(kind, pieces(), **LIMITS)
    except RequestError as error:
        return error.code
    return [(part.name, part.is_file, bytes(part.content)) for part in parts]


def _cut(kind: str, body: bytes):
    parts = cut_form(kind, body, **LIMITS)
    return None if parts is None else [(part.name, part.is_file, bytes(part.content)) for part in parts]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, SOUND),
        ('multipart/form-data; boundary="b"', SOUND),
        (KIND, SOUND.removesuffix(b"\r\n")),
        (KIND, SOUND.replace(b"Content-Disposition", b"content-disposition")),
        (KIND, _part(FILE, b"") + b"--b--\r\n"),
        (KIND, _part(b'Content-Disposition: form-data; name="\xc3\xa4\xff"; filename=""', b"x--b") + b"--b--"),
    ],
)
async def test_ordinary_form_is_cut_as_it_is_parsed(kind, body):
    cut = _cut(kind, body)
    assert cut is not None
    assert cut == await _read(kind, body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", SOUND),
        (KIND + "; charset=utf-8", SOUND),
        (KIND, b""),
        (KIND, b"nonsense"),
        (KIND, SOUND[:-8]),
        (KIND, b"preamble\r\n" + SOUND),
        (KIND, SOUND + b"epilogue"),
        (KIND, _part(FIELD + b"\r\nX-Other: 1", b"1") + b"--b--\r\n"),
        (KIND, _part(b'Content-Disposition: form-data; name="a\\"b"', b"1") + b"--b--\r\n"),
        (KIND, _part(FIELD, b"0123456789") + b"--b--\r\n"),
        (KIND, _part(FIELD, b"1") * 4 + b"--b--\r\n"),
        (KIND, b"--b--\r\n"),
    ],
)
def test_form_out_of_the_ordinary_is_left_to_the_parser(kind, body):
    assert not _cut(kind, body)


async def test_damaged_form_is_never_cut_otherwise_than_it_is_parsed():
    chance = random.Random(5)
    pieces = [b"\r\n", b"--b", b"--", b"\r\n\r\n", b'"', b";", b"\\", b"\x00", b"filename", b"a", b"\n", b" "]
    cut = 0
    for _ in range(3000):
        body = bytearray(SOUND)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(body))
            body[place : place + chance.randint(0, 3)] = chance.choice(pieces)
        found = _cut(KIND, bytes(body))
        if found is not None:
            cut += 1
            assert found == await _read(KIND, bytes(body)), bytes(body)
    assert cut > 100
