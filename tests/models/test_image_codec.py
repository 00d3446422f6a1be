"""Every kind of file that people send, what is refused, and what it costs to refuse it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from PIL import Image

from carousel.models.codec import image as image_module
from carousel.models.codec.image import MAX_PIXELS, MAX_SCANS, read_image
from carousel.models.errors import ImageRejected, ImageTooLarge

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 7, 5


def _picture() -> Image.Image:
    """Every pixel of another colour: <uint8>[5, 7, 3]"""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([rows * 50, columns * 36, rows * 7 + columns * 11], axis=2).astype(np.uint8))


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pixels(content: bytes) -> np.ndarray:
    image = read_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def _png(
    width: int, height: int, *, depth: int = 8, colour: int = 0, data: bytes = b"", clear: tuple[int, ...] = ()
) -> bytes:
    """A PNG by hand: its header may say what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    body = transparent + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def _webp(width: int, height: int) -> bytes:
    """An animated WebP of small frames on a canvas of any size."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    content = _file(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert content[12:16] == b"VP8X"
    return content[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + content[30:]


def _gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF whose frame may stand over its screen."""
    return (
        b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
        + b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0\x02\x02\x44\x01\0;"
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_image_of_a_lossless_kind_is_read_as_it_is(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(_pixels(_file(_picture(), kind, **options)), np.asarray(_picture()))


def test_jpeg_is_read_nearly_as_it_was():
    flat = Image.new("RGB", (WIDTH, HEIGHT), (200, 60, 30))
    for options in ({"quality": 95}, {"quality": 95, "progressive": True}):
        assert np.abs(_pixels(_file(flat, "JPEG", **options)).astype(int) - np.asarray(flat)).max() <= 3


def test_jpeg_in_cmyk_is_read_in_its_colours():
    flat = Image.new("RGB", (16, 16), (200, 60, 30))
    seen = _pixels(_file(flat.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(seen.astype(int) - (200, 60, 30)).max() <= 4


def test_sixteen_bits_keep_the_upper_eight():
    values = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    grey = _pixels(_file(Image.fromarray(values)))
    assert grey[0].tolist() == [[level] * 3 for level in (0, 0, 1, 128, 255)]
    samples = np.array([[0x1234, 0xABCD, 0xFF00], [0x00FF, 0x8000, 0x0100]], ">u2")
    colour = _pixels(_png(2, 1, depth=16, colour=2, data=b"\0" + samples.tobytes()))
    assert colour[0].tolist() == [[0x12, 0xAB, 0xFF], [0x00, 0x80, 0x01]]


def test_palette_is_read_in_its_colours():
    assert np.array_equal(_pixels(_file(_picture().quantize(64))), np.asarray(_picture()))


def test_bilevel_and_grey_become_colours():
    grey = Image.fromarray(np.array([[0, 90, 255]], np.uint8))
    assert _pixels(_file(grey))[0].tolist() == [[0] * 3, [90] * 3, [255] * 3]
    assert _pixels(_file(grey.convert("1", dither=Image.Dither.NONE)))[0].tolist() == [[0] * 3, [0] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(kind):
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert _pixels(_file(image, kind, **options))[0].tolist() == [[10, 20, 30], [255] * 3, [204] * 3]


def test_transparency_of_grey_of_a_palette_and_of_a_colour_is_white():
    grey = Image.new("LA", (2, 1), (40, 255))
    grey.putpixel((1, 0), (40, 0))
    assert _pixels(_file(grey))[0].tolist() == [[40] * 3, [255] * 3]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 8, 7, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert _pixels(_file(palette, kind, transparency=1))[0].tolist() == [[9, 8, 7], [255] * 3]
    assert _pixels(_file(palette, transparency=b"\xff\x00"))[0].tolist() == [[9, 8, 7], [255] * 3]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    assert _pixels(_file(colour, transparency=(1, 2, 3)))[0].tolist() == [[255] * 3]


@pytest.mark.parametrize(
    ("depth", "data", "clear", "levels"),
    [
        (16, struct.pack(">4H", 0x1234, 0x1235, 0, 0xAB00), 0x1234, [255, 0x12, 0, 0xAB]),  # to the last bit
        (16, struct.pack(">4H", 0, 1, 0x100, 0), 0, [255, 0, 1, 255]),
        (8, bytes([7, 8, 0, 9]), 7, [255, 8, 0, 9]),
        (4, bytes([0x78, 0x07]), 7, [255, 136, 0, 255]),
        (2, bytes([0b00011011]), 1, [0, 255, 170, 255]),
        (1, bytes([0b01010000]), 0, [255, 255, 255, 255]),
        (1, bytes([0b01010000]), 1, [0, 255, 0, 255]),
    ],
)
def test_transparent_grey_is_white_at_every_depth(depth, data, clear, levels):
    seen = _pixels(_png(4, 1, depth=depth, data=b"\0" + data, clear=(clear,)))
    assert seen[0].tolist() == [[level] * 3 for level in levels]


def test_transparent_colour_of_sixteen_bits_is_white_where_the_upper_eight_are_alike():
    samples = struct.pack(">9H", 0x1234, 0x5678, 0x9ABC, 0x1235, 0x5600, 0x9AFF, 0x1334, 0x5678, 0x9ABC)
    seen = _pixels(_png(3, 1, depth=16, colour=2, data=b"\0" + samples, clear=(0x1234, 0x5678, 0x9ABC)))
    assert seen[0].tolist() == [[255] * 3, [255] * 3, [0x13, 0x56, 0x9A]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = _file(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options)
    assert (_pixels(content) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)  # a red corner at the top left, and a blue one at the top right
    upright[:8, 16:] = (0, 0, 255)
    # How a camera held so stores what it sees (EXIF 2.3, 4.6.4, Orientation).
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = _file(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), **options)
    seen = _pixels(content)
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).max() <= 4


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_exif_orientation_that_is_none_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(_pixels(_file(_picture(), exif=exif.tobytes())), np.asarray(_picture()))


BROKEN_EXIF = {
    "garbage": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
    "offset beyond the end": b"Exif\0\0MM\0*\0\xff\xff\xff",
    "entries beyond the end": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01",
    "orientation a text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02\x36\0\0\0\0\0\0\0",
    "data beyond the end": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_leaves_the_image_as_it_lies(kind, exif):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    plain = _file(_picture(), kind, **options)
    assert np.array_equal(_pixels(_file(_picture(), kind, exif=exif, **options)), _pixels(plain))


def test_image_of_one_pixel_is_read():
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        assert read_image(_file(Image.new("RGB", (1, 1)), kind)).size == (1, 1)


NO_IMAGES = {
    "empty": b"",
    "text": b"not an image",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "bmp": _file(_picture(), "BMP"),
    "tiff": _file(_picture(), "TIFF"),
    "pdf": _file(_picture(), "PDF"),
    "ico": _file(_picture(), "ICO"),
    "url": b"http://127.0.0.1/picture.png",
    "png of 0 x 0": _png(0, 0),
    "png of 5 x 0": _png(5, 0),
    "gif of 0 x 0": _gif((0, 0), (0, 0)),
    "png's signature": b"\x89PNG\r\n\x1a\n",
    "jpeg's signature": b"\xff\xd8\xff",
    "webp's signature": b"RIFF\x04\0\0\0WEBPVP8 ",
    "gif's signature": b"GIF89a",
    "png of a strange depth": _png(3, 3, depth=7),
    "png of no pixels": _png(3, 3),
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(ImageRejected) as caught:
        read_image(content)
    assert not isinstance(caught.value, ImageTooLarge)
    assert 20 < len(str(caught.value)) < 250
    assert "0x" not in str(caught.value)  # no addresses of our own objects


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_image_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    content = _file(noise, kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageRejected):
            read_image(content[: int(len(content) * share)])


TOO_LARGE = {
    "png": _png(30_000, 30_000),
    "png a little too large": _png(MAX_PIXELS + 1, 1),
    "png within Pillow's own bound": _png(8_000, 8_000),
    "png where Pillow warns": _png(10_000, 10_000),
    "png of the largest size": _png(2**31 - 1, 2**31 - 1),
    "webp": _webp(16_384, 16_384),
    "webp where Pillow warns": _webp(10_000, 10_000),
    "webp of the largest canvas": _webp(65_536, 65_535),
    "gif": _gif((30_000, 30_000), (1, 1)),
    "gif's frame": _gif((3, 3), (60_000, 60_000)),
    "gif's frame where Pillow warns": _gif((3, 3), (10_000, 10_000)),
    "jpeg": _file(Image.new("L", (8, 8)), "JPEG").replace(b"\x08\0\x08\0\x08", b"\x08\xff\xdc\xff\xdc"),
}


@pytest.mark.parametrize("content", TOO_LARGE.values(), ids=TOO_LARGE)
def test_image_of_too_many_pixels_is_refused_undecoded(content):
    assert len(content) < 10_000
    began = perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            read_image(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert perf_counter() - began < 1.0


@pytest.mark.parametrize("name", ["png", "png where Pillow warns", "webp", "webp where Pillow warns", "gif's frame"])
def test_too_large_an_image_takes_no_memory(name):
    """tracemalloc does not see what C code takes; the process' own high-water mark does."""
    script = (
        "import resource, sys\n"
        "from carousel.models.codec.image import read_image\n"
        "from carousel.models.errors import ImageTooLarge\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(bytes.fromhex(sys.argv[1]))\n"
        "except ImageTooLarge: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, TOO_LARGE[name].hex()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert int(done.stdout) < 20_000  # KiB


def test_bomb_of_few_bytes_is_refused_undecoded():
    bomb = _png(20_000, 20_000, data=b"\0" * (20_001 * 2_000))  # the first tenth of it is enough to be one
    assert len(bomb) < 100_000
    began = perf_counter()
    with pytest.raises(ImageTooLarge, match="50,000,000"):
        read_image(bomb)
    assert perf_counter() - began < 1.0


def test_image_of_the_most_pixels_is_read(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", WIDTH * HEIGHT)
    assert read_image(_file(_picture())).size == (WIDTH, HEIGHT)
    with pytest.raises(ImageTooLarge, match="6 x 6 pixels; allowed are 35"):
        read_image(_file(Image.new("RGB", (6, 6))))


def test_jpeg_of_very_many_scans_is_refused():
    content = _file(Image.new("RGB", (64, 64), (200, 10, 10)), "JPEG", progressive=True, comment=b"\xff\xd9" * 3)
    last = content[content.rindex(b"\xff\xda") : -2]
    scans = content.count(b"\xff\xda")
    assert read_image(content[:-2] + last * (MAX_SCANS - scans) + content[-2:]).size == (64, 64)
    for between in (b"", b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"):  # a comment that looks like the end
        many = content[:-2] + between + last * (MAX_SCANS - scans + 1) + content[-2:]
        with pytest.raises(ImageRejected, match="scans"):
            read_image(many)


def test_jpeg_with_another_file_after_it_is_read():
    """As phones write a film after the photograph: what looks like a scan there is none."""
    content = _file(Image.new("RGB", (9, 8)), "JPEG")
    assert read_image(content + b"\xff\xda" * (MAX_SCANS + 1)).size == (9, 8)


def test_odd_files_leave_no_warning(recwarn):
    for content in (*TOO_LARGE.values(), *NO_IMAGES.values()):
        with pytest.raises(ImageRejected):
            read_image(content)
    for exif in BROKEN_EXIF.values():
        read_image(_file(_picture(), "JPEG", exif=exif))
    assert not recwarn.list
