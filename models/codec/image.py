"""Images as a graph takes them: the same code at training and at serving.

Axes: H, W an image's height and width, C its channels.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override  # of Python 3.12

from carousel.models.codec.spec import CODECS, CodecSpec
from carousel.models.errors import ImageRejected, ImageTooLarge
from carousel.models.graph import TensorSpec

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What is read; of an animation the first frame. Vector graphics and whatever else Pillow can open are not."""

MAX_PIXELS = 50_000_000
"""Largest image, looked at in its header before anything is decoded: 200 MB, at Pillow's four bytes a pixel."""

MAX_SCANS = 100
"""Of a JPEG. A scan of nothing new takes 75 bytes to write and as long as a whole image to read; encoders make ten."""

_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""Of a JPEG, but for those that stand within a scan."""

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, 1 being upright, and what undoes each."""

_warnings_lock = threading.Lock()

Size = Annotated[int, Field(ge=1, le=4096)]
Deviation = Annotated[float, Field(gt=0)]
Pixels = npt.NDArray[np.float32]


def read_image(content: bytes, side: int | None = None) -> Image.Image:
    """Decode the first frame of an image file as people see it: upright, opaque, in RGB.

    EXIF's orientation is applied where it can be read; what is transparent becomes white; of 16 bits the upper eight
    are kept, and in colour they alone are compared with a PNG's transparent colour.

    Args:
        content: the file.
        side: for who shrinks it anyway, to edges no longer than this: a JPEG is then decoded at a half, a quarter or an
            eighth of its size, which takes a fraction of the time, if both edges stay as long as this.

    Raises:
        ImageTooLarge: the header says more than MAX_PIXELS pixels. Nothing has been decoded.
        ImageRejected: not an image of FORMATS, or a broken one.
    """
    if not content:
        raise ImageRejected(f"image is empty; allowed are {', '.join(FORMATS)} files")
    try:
        with _no_warnings():
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"image has far more pixels than the {MAX_PIXELS:,} allowed") from None
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageRejected(f"content is not an image; allowed are {', '.join(FORMATS)} files") from None
    with image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageRejected(f"image is {width} x {height} pixels; allowed is 1 x 1 or more")
        if width * height > MAX_PIXELS:
            raise ImageTooLarge(f"image is {width:,} x {height:,} pixels; allowed are {MAX_PIXELS:,} pixels in all")
        if image.format in ("JPEG", "MPO") and _has_many_scans(content):
            raise ImageRejected(f"image is a JPEG of more than {MAX_SCANS} scans; save it as a baseline JPEG")
        try:
            if side is not None:
                image.draft(None, (side, side))  # of other formats nothing
            image.load()
            opaque = _opaque(image, _sample_bits(content) if image.format == "PNG" else 8)
        except Exception as error:
            reason = " ".join(str(error).split())[:100]
            raise ImageRejected(f"image is broken ({image.format}: {reason}); send a whole file") from None
        undo = _UPRIGHT.get(_orientation(image))
    return opaque if undo is None else opaque.transpose(undo)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without Pillow's warnings of what is checked here, or means nothing here.

    One thread at a time: what is shown is a matter of the whole process.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _has_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS scans."""
    if content.count(bytes((0xFF, _START_OF_SCAN))) <= MAX_SCANS:  # with what only looks like one
        return False
    count, start = 0, 2
    while count <= MAX_SCANS and (marker := _MARKER.search(content, start)) and marker[0][-1] != _END_OF_IMAGE:
        count += marker[0][-1] == _START_OF_SCAN
        start = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return count > MAX_SCANS


def _orientation(image: Image.Image) -> int:
    """Of a loaded image, by EXIF; upright where that is broken: what is said about an image is not the image."""
    try:
        with _no_warnings():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as when opening
        return 1
    return orientation if isinstance(orientation, int) else 1


def _opaque(image: Image.Image, depth: int) -> Image.Image:
    """The image in RGB, white where it is transparent.

    Args:
        image: loaded.
        depth: bits of one sample in the file.
    """
    colour = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip at 255
        grey = np.asarray(image)
        upper = (grey >> 8).astype(np.uint8)
        return Image.fromarray(upper if colour is None else np.where(grey == colour, np.uint8(255), upper)).convert(
            "RGB"
        )
    if image.mode in ("L", "RGB") and colour is not None and depth != 8:
        # Pillow brings samples of other depths to 8 bits, but not the colour that stands for nothing.
        image.info["transparency"] = _in_8_bits(colour, depth)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy 200 MB at the most
    layer = image.convert("RGBA")
    background = Image.new("RGB", layer.size, "white")
    background.paste(layer, mask=layer)
    return background


def _sample_bits(png: bytes) -> int:
    """Bits of one sample: the byte behind width and height in the header, which comes first."""
    return png[24]


def _in_8_bits(colour: int | tuple[int, ...], depth: int) -> int | tuple[int, ...]:
    """A grey or an RGB colour as Pillow has samples of this depth: of 16 bits the upper eight, fewer stretched."""
    if isinstance(colour, tuple):
        return tuple(sample >> 8 for sample in colour) if depth == 16 else colour
    return colour * 255 // ((1 << depth) - 1)


class Preprocessing(BaseModel):
    """How a decoded image becomes what an encoder takes. It travels from the feature cache to the manifest.

    `mean` and `deviation` are of pixel values in [0, 255], in the order of `channels`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: Size
    height: Size
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[Deviation, Deviation, Deviation] = (255.0, 255.0, 255.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["chw", "hwc"] = "chw"
    fit: Literal["stretch", "crop"] = "stretch"
    """`stretch` squeezes the whole picture into the size; `crop` keeps its shape and cuts what stands over the size,
    half on each side."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one preprocessed image: (3, H, W) or (H, W, 3)."""
        return (3, self.height, self.width) if self.layout == "chw" else (self.height, self.width, 3)

    @property
    def side(self) -> int:
        """How far `read_image` may shrink what `apply` is given."""
        return max(self.width, self.height)

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of an image that is left after `fit`, in its own size."""
        if self.fit == "stretch":
            return image
        scale = min(image.width / self.width, image.height / self.height)
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)

    def read(self, content: bytes) -> Pixels:
        """An image file as an encoder takes it. <float32>, of `shape`

        Raises:
            ImageRejected: or ImageTooLarge, as read_image.
        """
        return self.apply(read_image(content, self.side))

    def apply(self, image: Image.Image) -> Pixels:
        """Resize (bicubic), centre and scale.

        Args:
            image: upright and in RGB, as read_image gives it for a side of `side`.

        Returns:
            <float32>[3, H, W] or [H, W, 3], by `layout`.
        """
        size = (self.width, self.height)
        resample = Image.Resampling.BICUBIC
        fitted = image.resize(size, resample) if self.fit == "stretch" else ImageOps.fit(image, size, resample)
        pixels = np.asarray(fitted)  # [H, W, 3]
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        if self.layout == "chw":  # before the arithmetic, which is quicker along rows than across colours
            pixels, mean, deviation = pixels.transpose(2, 0, 1), mean[:, None, None], deviation[:, None, None]
        values: Pixels = pixels.astype(np.float32, order="C")
        values -= mean
        values /= deviation
        return values


@CODECS.register("image")
class ImageCodecSpec(CodecSpec):
    """An image file in, as an encoder takes it."""

    kind: Literal["image"] = "image"
    preprocessing: Preprocessing

    @override
    def open(self, files: Mapping[str, bytes]) -> ImageCodec:
        """The codec."""
        return ImageCodec(self.preprocessing)


class ImageCodec:
    """An image file in, as an encoder takes it."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """Pixels of the preprocessing's size and layout, in."""
        shape = self.preprocessing.shape
        if not fed or (port.dtype, port.shape[1:]) != ("float32", shape):
            raise ValueError(f"images are float32[{', '.join(map(str, ('batch', *shape)))}]; {port} is not")
