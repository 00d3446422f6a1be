"""Sequences of classes, one a step: parts of speech, phonemes, whether somebody speaks.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from carousel.models.codec.labels import LabelsCodec, Scores
from carousel.models.codec.names import names_of
from carousel.models.codec.spec import CODECS, FileCodecSpec, text_of
from carousel.models.graph import TensorSpec


@CODECS.register("tags")
class TagsCodecSpec(FileCodecSpec):
    """A class a step, in or out."""

    kind: Literal["tags"] = "tags"
    file: str = "tags.json"
    scores: Scores = "logits"

    def open(self, files: Mapping[str, bytes]) -> TagsCodec:
        """The codec of the file."""
        return TagsCodec.from_json(text_of(files, self.file), self.scores)


class TagsCodec(LabelsCodec):
    """Labels, one a step: what a step's row says is of that step, and of a whole input there is a row a step."""

    @classmethod
    def from_json(cls, content: str, scores: Scores = "logits") -> TagsCodec:
        """The codec of a `tags.json`: a JSON array of names.

        Raises:
            ValueError: the content is anything else.
        """
        return cls(names_of("label", content), scores)

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """As of labels, of one step; or of a whole input, with a free axis of steps behind the batch."""
        if len(port.shape) > 1 and port.shape[1] is None:
            port = TensorSpec(port.name, port.dtype, (None, *port.shape[2:]))
        super().require(port, fed=fed)
