#!/usr/bin/env bash
# Pillow reads a PNG's samples of 2, 4 and 16 bits as 8 bits, but not the transparent colour (tRNS), which stays in the
# file's own depth: converted to RGBA, such a picture is opaque where the PNG specification (section 11.3.2.1) says that
# it is not. Who shows such pictures on white sees the hidden colour instead.
# Ends with 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==12.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

from PIL import Image


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def alphas(depth, colour_type, samples, transparent, width):
    """The alpha of each pixel of one row, as Pillow has it in RGBA."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", transparent)
    content += chunk(b"IDAT", zlib.compress(b"\0" + samples)) + chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(content))
    image.load()
    return list(image.convert("RGBA").getchannel("A").getdata())


colour = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
seen = {
    "8-bit grey": alphas(8, 0, bytes([7, 9]), struct.pack(">H", 7), 2),
    "4-bit grey": alphas(4, 0, bytes([0x79]), struct.pack(">H", 7), 2),
    "2-bit grey": alphas(2, 0, bytes([0b01100000]), struct.pack(">H", 1), 2),
    "16-bit colour": alphas(16, 2, colour + bytes(6), colour, 2),
}
print(seen)
expected = {"8-bit grey": [0, 255], "4-bit grey": [255, 255], "2-bit grey": [255, 255], "16-bit colour": [255, 255]}
assert seen == expected, "the behaviour has changed: the first pixel of each is transparent by the specification"
PYTHON
