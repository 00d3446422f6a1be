"""Batches of series: drawn anew each epoch, and cut into windows whose state is carried.

Axes: B series of a batch, T steps of a window, I numbers read, O numbers said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carousel.models.strict import Count, CountOrNone, Strict
from carousel.training.corpus.series.series import Series, SeriesKind


class Batches(Strict):
    """How series become updates."""

    rows: Count = 20
    """B"""
    window: CountOrNone = 0
    """T: steps between two updates, and how far gradients reach back; 0 is the whole series."""


@dataclass(frozen=True, slots=True)
class SeriesWindow:
    """Up to T steps of B series."""

    inputs: Tensor
    """<float32>[B, T, I]"""
    targets: Tensor
    """<float32>[B, T, O]"""
    asked: Tensor
    """<bool>[B, T]"""
    first: bool
    """Whether the series begin here, from the zero state."""


def cut(series: Series, rows: slice, window: int, device: torch.device) -> Iterator[SeriesWindow]:
    """The windows of some of the series, in order."""
    steps = series.inputs.shape[1]
    for at in range(0, steps, window or steps):
        part = (rows, slice(at, at + (window or steps)))
        yield SeriesWindow(
            torch.from_numpy(series.inputs[part].astype(np.float32)).to(device),
            torch.from_numpy(series.targets[part].astype(np.float32)).to(device),
            torch.from_numpy(series.asked[part]).to(device),
            at == 0,
        )


class Drawn:
    """An epoch's series as windows, a function of (seed, epoch).

    Args:
        kind: of the series.
        count: how many an epoch has; at least B, and a batch that would be smaller is left out.
        batches: B and T.
        seed: of what is drawn.
        device: where the windows go.
    """

    def __init__(self, kind: SeriesKind, count: int, batches: Batches, seed: int, device: torch.device) -> None:
        self._kind, self._count, self._batches = kind, count, batches
        self._seed, self._device = seed, device
        self.steps = kind.draw(np.random.default_rng(0), 1).inputs.shape[1]
        """Of a whole series."""
        self._windows_per_batch = -(-self.steps // (batches.window or self.steps))
        self.windows_per_epoch = count // batches.rows * self._windows_per_batch

    def windows(self, epoch: int, start: int) -> Iterator[SeriesWindow]:
        """The windows of an epoch, from window `start` on."""
        series = self._kind.draw(np.random.default_rng([self._seed, 0, epoch]), self._count)
        rows, index = self._batches.rows, 0
        for batch in range(self._count // rows):
            for window in cut(series, slice(batch * rows, (batch + 1) * rows), self._batches.window, self._device):
                if index >= start:
                    yield window
                index += 1
