"""The Mackey-Glass equation (Mackey & Glass 1977): a chaotic series, to be foretold.

    dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x(t)

Axes: N series, T steps.
"""

from __future__ import annotations

import numpy as np

from carousel.models.strict import Count
from carousel.training.corpus.series.series import SERIES, Floats, Series, SeriesKind

STEPS_PER_UNIT = 10
"""Of the integration: h = 0.1."""
TRANSIENT = 1000
"""Units of time after which a solution has forgotten the constant that it began as."""


def _slope(x: Floats, delayed: Floats) -> Floats:
    return np.asarray(0.2 * delayed / (1.0 + delayed**10) - 0.1 * x)


def mackey_glass(start: Floats, length: int, tau: int = 17, steps: int = STEPS_PER_UNIT) -> Floats:
    """x(0), x(1), ... x(length - 1) of solutions that were constant up to t = 0. <float64>[N] -> [N, length]

    The classical Runge-Kutta method of order 4 with a fixed step h = 1 / `steps`. The delay is a whole number of
    steps, so what is needed of the past stands on the grid, or half-way between two points of it: there the cubic
    Hermite polynomial of values and slopes is taken, which keeps the order. (The usual short cuts, Euler's method or a
    delayed value held over the step, are of order 1: their series is that of another equation.) Kinks at multiples of
    tau, which a constant past causes, lie on the grid.

    Args:
        start: the constant of each.
        length: in units of time.
        tau: the delay, at least 1; chaotic from 17 on.
        steps: of integration in a unit of time.
    """
    h, lag = 1.0 / steps, tau * steps
    x = np.empty((lag + (length - 1) * steps + 1, len(start)))  # time first: [.., N]
    # From the right and from the left at a point: they differ at t = 0 alone.
    slope = np.zeros_like(x)
    x[: lag + 1] = start
    for now in range(lag, len(x) - 1):
        past, following = x[now - lag], x[now - lag + 1]
        after = slope[now - lag + 1] if now - lag + 1 != lag else np.zeros_like(start)
        middle = (past + following) / 2 + h / 8 * (slope[now - lag] - after)
        first = slope[now] = _slope(x[now], past)
        second = _slope(x[now] + h / 2 * first, middle)
        third = _slope(x[now] + h / 2 * second, middle)
        fourth = _slope(x[now] + h * third, following)
        x[now + 1] = x[now] + h / 6 * (first + 2 * second + 2 * third + fourth)
    return np.ascontiguousarray(x[lag::steps].T)


@SERIES.register("mackey-glass")
class MackeyGlass(SeriesKind):
    """After each value, the value `horizon` units of time later; read less 1, about which it turns."""

    mean = 1.0

    length: Count = 500
    tau: Count = 17
    horizon: Count = 1

    def draw(self, random: np.random.Generator, count: int) -> Series:
        """See SeriesKind. Each begins from a constant of its own and is read after its transient."""
        whole = mackey_glass(random.uniform(0.5, 1.5, count), TRANSIENT + self.length + self.horizon, self.tau)
        x = whole[:, TRANSIENT:, None] - self.mean
        return Series(x[:, : self.length], x[:, self.horizon :], np.ones((count, self.length), np.bool_))
