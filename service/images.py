"""Image files made ready for a model, on threads of their own: decoding one takes milliseconds to seconds."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL.Image import Image

from models.codec.image import Pixels, Preprocessing, read_image
from models.errors import ImageRejected, ImageTooLarge
from service.errors import RequestError

PIECE = 1 << 18
"""Characters of base64 decoded at a time, a multiple of four: other threads have their turn in between."""

_DATA_URI = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40};base64,")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}:|//|www\.")

Result = TypeVar("Result")
ImageFile = bytes | str
"""An image file: its bytes, or the same in base64."""


class ImageReader:
    """Decodes and preprocesses at most so many images at once, whoever sent them; the others wait, first come first.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._count = threads or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="images")

    async def read(self, preprocessing: Preprocessing, file: ImageFile, where: str = "image") -> Pixels:
        """An image as an encoder eats it. <float32>, of `preprocessing.shape`

        Raises:
            RequestError: as `use`.
        """
        return await self.use(file, preprocessing.apply, where)

    async def use(self, file: ImageFile, make: Callable[[Image], Result], where: str = "image") -> Result:
        """What a function makes of a decoded image. Cancelling it withdraws an image that waits.

        Raises:
            RequestError: invalid_image or image_too_large; `where` begins the message.
        """

        def read() -> Result:
            return make(read_image(file if isinstance(file, bytes) else _from_base64(file)))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except ImageTooLarge as error:
            raise RequestError("image_too_large", f"{where}: {error}") from None
        except ImageRejected as error:
            raise RequestError("invalid_image", f"{where}: {error}") from None

    async def read_all(self, preprocessing: Preprocessing, files: Sequence[ImageFile], where: str) -> list[Pixels]:
        """Many images, in their order, named `<where>.<place>` in errors.

        No more of them wait for a thread than there are threads: who comes with one image does not wait for all of
        another's hundred.

        Raises:
            RequestError: of the first that is refused.
        """
        results: dict[int, Pixels] = {}
        waiting = iter(range(len(files)))

        async def work() -> None:
            for place in waiting:
                results[place] = await self.read(preprocessing, files[place], f"{where}.{place}")

        tasks = [asyncio.ensure_future(work()) for _ in range(min(self._count, len(files)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [results[place] for place in range(len(files))]

    def close(self) -> None:
        """Take no more images; what is being decoded goes on to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _from_base64(text: str) -> bytes:
    prefix = _DATA_URI.match(text)
    if prefix:
        text = text[prefix.end() :]
    elif _URI.match(text):
        raise ImageRejected("is an address, and nothing is fetched; send the file's bytes, in base64")
    text = "".join(text.split())  # MIME's line ends
    try:
        pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except ValueError:
        raise ImageRejected("is not base64; send the file's bytes in the alphabet of RFC 4648, section 4") from None
