"""Sequences of classes, one a step: parts of speech, phonemes, whether somebody speaks.

Axes: T steps, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from carousel.models.codec.labels import LabelProbability, LabelsCodec, Scores
from carousel.models.codec.names import names_of
from carousel.models.codec.spec import CODECS, Array, CodecSpec, Ids, text_of
from carousel.models.errors import UnknownLabel
from carousel.models.graph import TensorSpec


@CODECS.register("tags")
class TagsCodecSpec(CodecSpec):
    """A class a step, in or out."""

    kind: Literal["tags"] = "tags"
    file: str = "tags.json"
    scores: Scores = "logits"

    @property
    def files(self) -> tuple[str, ...]:
        """The list's."""
        return (self.file,)

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

    def encode_steps(self, tags: Sequence[str | int]) -> Ids:
        """The ids of a sequence of tags, given by name or id. <int64>[T]

        Raises:
            UnknownLabel: the model has no such tag; with its place.
        """
        ids = np.zeros(len(tags), np.int64)
        for place, tag in enumerate(tags):
            try:
                ids[place] = self.encode(tag)
            except UnknownLabel as error:
                raise UnknownLabel(f"tag {place}: {error}") from None
        return ids

    def decode_steps(self, scores: Array) -> list[LabelProbability]:
        """The most probable tag of each step, and how probable it is; of equals the first in the list. [T, C]"""
        probabilities = self.probabilities(scores)
        best = probabilities.argmax(axis=-1)
        chosen = np.take_along_axis(probabilities, best[:, None], axis=-1)[:, 0]
        return [
            LabelProbability(self.labels[place], probability)
            for place, probability in zip(best.tolist(), chosen.tolist(), strict=True)
        ]
