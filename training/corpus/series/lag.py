"""A lag of 1,000 steps: task 2c of Hochreiter & Schmidhuber 1997, "very long time lags, no local regularities".

Axes: N series, T steps, Q distractors.
"""

from __future__ import annotations

import numpy as np

from carousel.models.strict import Count
from carousel.training.corpus.series.series import SERIES, Series, SeriesKind

BEGIN, X, Y, TRIGGER = range(4)
"""Where each stands in a one-hot vector, before the distractors."""
DISTRACTORS = 8
END = 0.1
"""The probability that the trigger comes, at each step after the lag."""
LATEST = 64
"""Steps after the lag; of a thousand triggers one would be later, and comes then."""


@SERIES.register("lag")
class Lag(SeriesKind):
    """Symbols, one-hot: a beginning; x or y; at least `length` distractors at random, then with probability 1/10 a step
    the trigger, after which is asked whether x (0) or y (1) was read. When that is, nobody can count out.

    The paper has as many distractors as steps; eight show the same and make a small network.
    """

    inputs = DISTRACTORS + 4
    loss = "binary"

    length: Count = 1000

    def draw(self, random: np.random.Generator, count: int) -> Series:
        """See SeriesKind. Behind the trigger there are zeros, so that series are of one length."""
        ends = 1 + self.length + np.minimum(random.geometric(END, count), LATEST)  # of the trigger [N]
        steps, rows = 2 + self.length + LATEST, np.arange(count)
        symbols = random.integers(4, 4 + DISTRACTORS, (count, steps))
        is_y = random.integers(0, 2, count)
        symbols[:, 0], symbols[:, 1], symbols[rows, ends] = BEGIN, np.where(is_y, Y, X), TRIGGER
        inputs = np.eye(self.inputs)[symbols] * (np.arange(steps) <= ends[:, None])[..., None]
        asked = np.arange(steps) == ends[:, None]
        return Series(inputs, np.where(asked, is_y[:, None], 0)[..., None].astype(np.float64), asked)
