"""Series of real numbers that are made up, each with what is to be said of it; each other file of this room is a kind.

Axes: N series, T steps, I numbers read at a step, O numbers to say.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from carousel.models.registry import Registry
from carousel.models.strict import Count, Strict

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """Series with their targets."""

    inputs: Floats
    """[N, T, I]"""
    targets: Floats
    """Anything where nothing is asked. [N, T, O]"""
    asked: npt.NDArray[np.bool_]
    """After which steps a target is to be said. [N, T]"""


class SeriesKind(Strict):
    """What a recipe may say of a kind of series: its parameters."""

    inputs: ClassVar[int] = 1
    """I"""
    targets: ClassVar[int] = 1
    """O"""
    mean: ClassVar[float] = 0.0
    """What was taken from the numbers before a network reads them: clients send, and get, the numbers themselves."""
    loss: ClassVar[Literal["squared", "binary"]] = "squared"
    """Squared error, or the cross-entropy of targets that are 0 or 1."""

    length: Count
    """T"""

    @abstractmethod
    def draw(self, random: np.random.Generator, count: int) -> Series:
        """So many of them, a function of the generator's state and the parameters alone."""


SERIES: Registry[type[SeriesKind]] = Registry(__package__)
"""By the name that a recipe's `corpus.kind` gives."""
