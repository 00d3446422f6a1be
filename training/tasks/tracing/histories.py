"""Batches of learners: how histories of any length become windows whose state can be carried.

Axes: B learners of a batch, T attempts of a window.

Learners of about the same length are read side by side, T attempts at a time, until the longest of them ends; window
k+1 of a batch goes on with the state that window k left. Nothing is cut off or dropped: every attempt but a learner's
first is a target exactly once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carousel.models.strict import Count, Strict
from carousel.training.errors import CorpusError

PARTS = 8
"""Learners are mixed anew each epoch among those whose lengths fall into the same eighth of a window."""


class Batches(Strict):
    """How learners' histories become updates."""

    learners: Count = 32
    """B: learners of about the same length, read side by side."""
    window: Count = 200
    """T: attempts between two updates, and how far gradients reach back; a longer history goes on with its state."""


@dataclass(frozen=True, slots=True)
class HistoryWindow:
    """Up to T attempts of B learners, and the attempt that follows each."""

    ids: Tensor
    """<int64>[B, T]"""
    targets: Tensor
    """<int64>[B, T]"""
    present: Tensor
    """False behind a learner's end, where ids and targets mean nothing. <bool>[B, T]"""
    first: bool
    """Whether these learners begin here, from the zero state."""


class Histories:
    """The training learners as batches.

    The make-up and order of an epoch's batches are drawn from (seed, epoch) alone, so an epoch can be entered
    anywhere. How many windows an epoch has does not depend on the draw: mixing leaves the sequence of lengths,
    counted in eighths of a window, as it is.

    Args:
        histories: attempts of each learner.
        learners: B; the last batch is filled up with rows in which nothing is present.
        window: T.
        seed: of the mixing.
        device: where the windows go.

    Raises:
        CorpusError: nobody has two attempts.
    """

    def __init__(
        self, histories: Sequence[npt.NDArray[np.int64]], learners: int, window: int, seed: int, device: torch.device
    ) -> None:
        histories = [history for history in histories if len(history) > 1]
        if not histories:
            raise CorpusError("no training learner has two attempts; one to read and one to predict are needed")
        self._learners = learners
        self._window = window
        self._seed = seed
        self._flat = torch.from_numpy(np.concatenate(histories)).to(device)
        lengths = np.array([len(history) for history in histories])
        self._starts = np.cumsum(lengths) - lengths
        self._steps = lengths - 1  # [learners]
        self._parts = -(-self._steps * PARTS // window)
        self.targets = int(self._steps.sum())
        """Attempts predicted in an epoch."""
        self.windows_per_epoch = sum(
            -(-int(self._parts[batch].max()) // PARTS) for batch in self._batches(np.argsort(self._parts))
        )

    def _batches(self, order: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        return [order[at : at + self._learners] for at in range(0, len(order), self._learners)]

    def windows(self, epoch: int, start: int = 0) -> Iterator[HistoryWindow]:
        """The windows of an epoch, from window `start` on."""
        random = np.random.default_rng([self._seed, epoch])
        batches = self._batches(np.lexsort((random.random(len(self._parts)), self._parts)))
        index = 0
        for position in random.permutation(len(batches)):
            batch = batches[position]
            for at in range(0, int(self._steps[batch].max()), self._window):
                if index >= start:
                    yield self._cut(batch, at)
                index += 1

    def _cut(self, batch: npt.NDArray[np.int64], at: int) -> HistoryWindow:
        steps = np.zeros(self._learners, np.int64)
        starts = np.zeros(self._learners, np.int64)
        steps[: len(batch)], starts[: len(batch)] = self._steps[batch], self._starts[batch]
        positions = np.arange(at, min(at + self._window, int(steps.max())))  # [T]
        present = positions < steps[:, None]  # [B, T]
        places = np.where(present, starts[:, None] + positions, 0)
        where = torch.from_numpy(places).to(self._flat.device)
        return HistoryWindow(
            ids=self._flat[where],
            targets=self._flat[where + 1],
            present=torch.from_numpy(present).to(self._flat.device),
            first=at == 0,
        )
