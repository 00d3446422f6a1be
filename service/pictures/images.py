"""From image files to what sequences begin with, on threads: decoding one takes a tenth of a millisecond to a second.

What a file may cost is bounded by its pixels (models.codec.image.MAX_PIXELS), by how many are decoded at once, and by
places in the engine, which come first.
"""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL.Image import Image

from carousel.models.codec.image import ImageCodec, read_image
from carousel.models.cores import usable_cores
from carousel.models.errors import ImageRejected, ImageTooLarge
from carousel.service.engine.encoder.encoding import EncoderStopped, Encoding, EncodingFailed
from carousel.service.errors import ErrorCode, RequestError, ServiceError, Unavailable
from carousel.service.served.repository import ServedModel
from carousel.service.work.turns import in_turns

PIECE = 1 << 18
"""Characters of base64 decoded at a time: other threads have their turn in between."""

_DATA_URI = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40};base64,")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}:|//|www\.")

Result = TypeVar("Result")
ImageFile = bytes | str
"""An image file: its bytes, or the same in base64."""


class ImageReader:
    """Decodes at most so many images at once, whoever sent them and whichever thread does it; the others wait.

    Args:
        count: how many.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or usable_cores()
        self._turns = threading.Semaphore(self.count)
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="images")
        self._batch_thread = ThreadPoolExecutor(1, thread_name_prefix="images-batch")

    async def encode(
        self, model: ServedModel, file: ImageFile, where: str = "image", *, batch: bool = False
    ) -> Encoding:
        """What the sequence of an image begins with, for a model that has an encoder, whose threads decode it.

        A place in the engine comes first. Cancelling it withdraws an image that waits. `batch` waits for the others.

        Raises:
            RequestError: invalid_image or image_too_large; `where` begins the message.
            ServiceError: step_failed or model_unavailable.
        """
        assert model.encoder is not None
        preprocessing = model.bundle.codec(ImageCodec).preprocessing
        try:
            return await model.encoder.encode(lambda: self._decoded(file, preprocessing.read), batch=batch)
        except (ImageTooLarge, ImageRejected) as error:
            raise _refusal(error, where) from None
        except EncoderStopped as error:
            raise Unavailable("model_unavailable", f"{model.name}: {error}", 1) from None
        except EncodingFailed as error:
            raise ServiceError("step_failed", f"{model.name} failed on this image: {error}") from None

    async def encode_all(
        self, model: ServedModel, files: Sequence[ImageFile], where: str, *, batch: bool = False
    ) -> list[Encoding]:
        """Many images, in their order, named `<where>.<place>` in errors.

        No more of them wait for a thread than can be decoded at once: who comes with one image does not wait for all
        of another's hundred.

        Raises:
            ServiceError: of the first that fails, as `encode`.
        """

        async def encode(_: int, place: int) -> Encoding:
            return await self.encode(model, files[place], f"{where}.{place}", batch=batch)

        return await in_turns(range(min(self.count, len(files))), len(files), encode)

    async def use(self, file: ImageFile, make: Callable[[Image], Result], *, batch: bool = False) -> Result:
        """What a function makes of a decoded image, on a thread; on one apart for `batch`, so that nobody waits for it.

        Raises:
            RequestError: invalid_image or image_too_large.
        """
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._batch_thread if batch else self._threads,
                self._decoded,
                file,
                lambda content: make(read_image(content)),
            )
        except (ImageTooLarge, ImageRejected) as error:
            raise _refusal(error, "image") from None

    def close(self) -> None:
        """Take no more images; what is being decoded goes on to its end."""
        for threads in (self._threads, self._batch_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _decoded(self, file: ImageFile, read: Callable[[bytes], Result]) -> Result:
        with self._turns:
            return read(file if isinstance(file, bytes) else _from_base64(file))


def _refusal(error: ImageTooLarge | ImageRejected, where: str) -> RequestError:
    code: ErrorCode = "image_too_large" if isinstance(error, ImageTooLarge) else "invalid_image"
    return RequestError(code, f"{where}: {error}")


def _from_base64(text: str) -> bytes:
    prefix = _DATA_URI.match(text)
    if prefix is None and _URI.match(text):
        raise ImageRejected("is an address, and nothing is fetched; send the file's bytes, in base64")
    start, left, decoded = len(prefix[0]) if prefix else 0, "", []
    try:
        while start < len(text):
            piece = left + "".join(text[start : start + PIECE].split())  # MIME's line ends
            start += PIECE
            whole = len(piece) if start >= len(text) else len(piece) // 4 * 4
            decoded.append(base64.b64decode(piece[:whole], validate=True))
            left = piece[whole:]
        return b"".join(decoded)
    except ValueError:
        raise ImageRejected("is not base64; send the file's bytes in the alphabet of RFC 4648, section 4") from None
