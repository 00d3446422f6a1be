"""How good a model is on its validation data, before it is rounded and after; each file of `measures/` knows a task.

A task without one is exported in fp32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from carousel.export.progress import Progress
from carousel.models.figures import Measure as Unit
from carousel.models.nn.load import Trained
from carousel.models.nn.score import LARGEST_NATS
from carousel.models.nn.validation import CaptioningValidationData, ValidationData
from carousel.models.part import Part
from carousel.models.registry import Registry

F = TypeVar("F", bound=Part)
Data = ValidationData | CaptioningValidationData
D = TypeVar("D", bound=Data)


class Measure(ABC, Generic[F, D]):
    """The validation figures of a task."""

    figures: ClassVar[type[Part]]
    """What training records them as."""
    data: ClassVar[type[Data]]
    """What they are measured on."""
    unit: ClassVar[str]
    """What is counted while it is measured."""

    @abstractmethod
    def measured(self, trained: Trained, graphs: Mapping[str, bytes] | None, data: D, progress: Progress) -> F:
        """The figures of a network, as training measures them.

        Args:
            trained: the network.
            graphs: its graphs by file, which stand in its place; None where torch runs it.
            data: of the run.
            progress: is told.
        """

    @abstractmethod
    def kept(self, figures: F) -> tuple[int, float]:
        """What is the same wherever it is measured: on how much, and with how many nats."""

    @abstractmethod
    def told(self, figures: F) -> str:
        """For people."""

    @abstractmethod
    def worsening(self, before: F, after: F) -> tuple[Unit, float]:
        """What rounding cost, and in what; see models.figures.

        A figure that cannot fall by more than is allowed judges nothing: BLEU-4 near 0, as of captions of three words,
        and the AUC of answers that were all right or all wrong. There perplexity is asked.
        """


MEASURES: Registry[Measure[Any, Any]] = Registry("carousel.export.measures")
"""By task."""


def relative_perplexity(nats_before: float, nats_after: float) -> float:
    """Perplexity divided by what it was, less 1, from the nats: beyond 700 of them perplexities are all alike."""
    return math.expm1(min(nats_after - nats_before, LARGEST_NATS))
