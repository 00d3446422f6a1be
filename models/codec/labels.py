"""Classes <-> ids and scores: what a text is about, what a sound is.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from carousel.models.codec.ids import below, enter_ids, takes_ids
from carousel.models.codec.names import check_names, names_of, to_json
from carousel.models.codec.spec import CODECS, Array, FileCodecSpec, Ids, text_of
from carousel.models.errors import UnknownLabel
from carousel.models.graph import TensorSpec

Doubles = npt.NDArray[np.float64]

Scores = Literal["logits", "probabilities"]
"""What an output says of each class: logarithms up to a constant, or probabilities as they are."""

SHOWN_NAMES = 8
SHOWN = 80


@CODECS.register("labels")
class LabelsCodecSpec(FileCodecSpec):
    """One of some classes in, the probability of each out."""

    kind: Literal["labels"] = "labels"
    file: str = "labels.json"
    scores: Scores = "logits"

    def open(self, files: Mapping[str, bytes]) -> LabelsCodec:
        """The codec of the file."""
        return LabelsCodec.from_json(text_of(files, self.file), self.scores)


class LabelsCodec:
    """An ordered list of class names; a class' id is its position.

    Args:
        labels: names, each once: 1 to 500 characters that have a UTF-8 form.
        scores: what an output says of each.

    Raises:
        ValueError: no names, or one that is not allowed.
    """

    id_ports: ClassVar[int] = 1

    def __init__(self, labels: Sequence[object], scores: Scores = "logits") -> None:
        self.labels = check_names("label", labels)
        """Names, by id."""
        self.scores = scores
        self._ids = {label: place for place, label in enumerate(self.labels)}

    @classmethod
    def from_json(cls, content: str, scores: Scores = "logits") -> LabelsCodec:
        """The codec of a `labels.json`: a JSON array of names.

        Raises:
            ValueError: the content is anything else.
        """
        return cls(names_of("label", content), scores)

    def to_json(self) -> str:
        """The codec as `labels.json`, one name a line."""
        return to_json(self.labels)

    @property
    def id_count(self) -> int:
        """See IdCodec."""
        return len(self.labels)

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """An id or a one-hot row in; a row with a score for each class out."""
        count = len(self.labels)
        if not (takes_ids(port, count) if fed else _is_row(port, count)):
            kinds = "an id or a one-hot row" if fed else "a row of floats"
            raise ValueError(f"{count:,} labels; {port} is not {kinds} of them")

    def join(self, columns: Sequence[Ids]) -> Ids:
        """See IdCodec."""
        return below(columns[0], self.id_count, "id")

    def enter(self, ids: Ids, ports: Mapping[str, Array]) -> None:
        """Write ids into the port of a step: as they are, or as one-hot rows."""
        (port,) = ports.values()
        enter_ids(ids, port)

    def id_of(self, token: str) -> int | None:
        """The id of a class; None where there is none of that name."""
        return self._ids.get(token)

    def encode(self, label: str | int) -> int:
        """The id of a class, in [0, C), given by its name or the id itself.

        Raises:
            UnknownLabel: the model has no such class.
        """
        found = self._ids.get(label) if isinstance(label, str) else label
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < len(self.labels):
            shown = repr(label) if not isinstance(label, int) or abs(label) < 10**SHOWN else "of so many digits"
            raise UnknownLabel(f"there is no label {shown[:SHOWN]}; {self._known()}")
        return found

    def probabilities(self, scores: Array) -> Doubles:
        """How probable each class is, by rows of an output. [..., C] -> <float64>[..., C]"""
        values = np.asarray(scores, np.float64)
        if self.scores == "probabilities":
            return values
        weights = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

    def _known(self) -> str:
        names = ", ".join(map(repr, self.labels[:SHOWN_NAMES]))
        more = ", ..." if len(self.labels) > SHOWN_NAMES else ""
        return f"this model knows {len(self.labels):,}, ids 0 to {len(self.labels) - 1:,}: {names}{more}"


def _is_row(port: TensorSpec, count: int) -> bool:
    return port.dtype.startswith("float") and port.shape[1:] == (count,)
