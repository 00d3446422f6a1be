"""Mixtures of sines under noise: the next value without it is asked.

Axes: N series, T steps, K sines.
"""

from __future__ import annotations

import math

import numpy as np

from carousel.models.strict import Count, NotNegative
from carousel.training.corpus.series.series import SERIES, Series, SeriesKind

PERIODS = (8.0, 64.0)
"""In steps; drawn with equal probability on a logarithmic scale."""


@SERIES.register("sines")
class Sines(SeriesKind):
    """Sums of K sines of unit variance together, each of a period and a phase of its own, read with normal noise added.
    What is asked is the next value without noise, so 0 can be reached and the noise itself is nobody's target.
    """

    length: Count = 200
    sines: Count = 3
    noise: NotNegative = 0.2
    """Its standard deviation; the sum's is 1."""

    def draw(self, random: np.random.Generator, count: int) -> Series:
        """See SeriesKind."""
        shape = (count, self.sines, 1)
        period = np.exp(random.uniform(math.log(PERIODS[0]), math.log(PERIODS[1]), shape))
        phase = random.uniform(0, 2 * np.pi, shape)
        time = np.arange(self.length + 1)
        clean = np.sqrt(2 / self.sines) * np.sin(2 * np.pi * time / period + phase).sum(axis=1)  # [N, T + 1]
        noisy = clean[:, :-1] + self.noise * random.standard_normal((count, self.length))
        return Series(noisy[..., None], clean[:, 1:, None], np.ones((count, self.length), np.bool_))
