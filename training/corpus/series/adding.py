"""The adding problem (Hochreiter & Schmidhuber 1997): the sum of two marked numbers, said at the end.

Axes: N series, T steps.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from carousel.training.corpus.series.series import SERIES, Series, SeriesKind


@SERIES.register("adding")
class Adding(SeriesKind):
    """T pairs of a number in [0, 1) and a mark; one number of each half is marked 1, and after the last step their sum
    is asked, as Le et al. 2015 pose it. Who always says 1 has a squared error of 1/6.
    """

    inputs = 2

    length: Annotated[int, Field(ge=2)] = 200

    def draw(self, random: np.random.Generator, count: int) -> Series:
        """See SeriesKind."""
        half, rows = self.length // 2, np.arange(count)
        inputs = np.zeros((count, self.length, 2))
        inputs[..., 0] = random.random((count, self.length))
        inputs[rows, random.integers(0, half, count), 1] = 1
        inputs[rows, random.integers(half, self.length, count), 1] = 1
        targets, asked = np.zeros((count, self.length, 1)), np.zeros((count, self.length), np.bool_)
        targets[:, -1, 0] = inputs.prod(axis=2).sum(axis=1)
        asked[:, -1] = True
        return Series(inputs, targets, asked)
