"""An image in, a caption out: what a captioning model's two codecs and its head make together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from carousel.models.codec.image import ImageCodec, Pixels, Preprocessing
from carousel.models.codec.text import Detokenizer, TextCodec
from carousel.models.head import GenerateHead

if TYPE_CHECKING:
    from carousel.models.bundle import Bundle


class CaptionCodec:
    """An image in, a caption out.

    Args:
        text: the caption's tokens.
        preprocessing: of the image.
        begin: the token that a caption's first step takes.
        end: the token that ends it.

    Raises:
        ValueError: the vocabulary lacks `begin` or `end`.
    """

    def __init__(self, text: TextCodec, preprocessing: Preprocessing, begin: str, end: str) -> None:
        self.text = text
        self.preprocessing = preprocessing
        self.begin, self.end = begin, end
        self.begin_id = self._id_of(begin)
        self.end_id = self._id_of(end)

    def preprocess(self, content: bytes) -> Pixels:
        """The file's bytes as the encoder takes them. <float32>, of `preprocessing.shape`

        Raises:
            ImageRejected: or ImageTooLarge, as read_image.
        """
        return self.preprocessing.read(content)

    def caption(self, ids: Sequence[int]) -> str:
        """The text of a caption's ids, up to the end token; it begins with no blank, which some tokenizers write."""
        ids = list(ids)
        return self.text.decode(ids[: ids.index(self.end_id)] if self.end_id in ids else ids).lstrip(" ")

    def detokenizer(self) -> Detokenizer:
        """A detokeniser for a caption's ids as they come. The end token is not to be given to it."""
        return self.text.detokenizer()

    def _id_of(self, token: str) -> int:
        found = self.text.id_of(token)
        if found is None:
            raise ValueError(f"the vocabulary has no token {token!r}, which the codec names")
        return found


def caption_codec(bundle: Bundle) -> CaptionCodec:
    """The codec of a captioning bundle: an image, and words between a head's `begin` and `end`."""
    head = bundle.manifest.head
    assert isinstance(head, GenerateHead)
    return CaptionCodec(
        bundle.codec(TextCodec), bundle.codec(ImageCodec).preprocessing, head.begin or "", head.end or ""
    )
