"""Lanes and windows: how one long stream of token ids becomes batches whose state can be carried.

Axes: B lanes, T steps of a window, N tokens of the stream.

The stream is cut into B contiguous lanes that are read side by side, T steps at a time. Window k+1 of a lane goes on
where window k ended, so the state after the one is the state before the other: truncated backpropagation through time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from carousel.models.strict import Count, Strict
from carousel.training.errors import CorpusError


class Batches(Strict):
    """How the training stream is cut."""

    lanes: Count = 32
    """B: contiguous parts of the text that are read side by side."""
    window: Count = 128
    """T: steps between two updates, and how far gradients reach back."""


@dataclass(frozen=True, slots=True)
class Window:
    """T steps of every lane, and the token that follows each."""

    ids: Tensor
    """<int64>[B, T]"""
    targets: Tensor
    """<int64>[B, T]"""


class Lanes:
    """The training stream as lanes.

    Each epoch starts at another place of the text, drawn from (seed, epoch) alone, so that no token is always the
    first of its window, the few that do not fill a window differ each time, and an epoch can be entered anywhere.

    Args:
        ids: the stream. <int64>[N]
        lanes: B.
        window: T.
        seed: of the places.

    Raises:
        CorpusError: the stream does not fill one window of every lane.
    """

    def __init__(self, ids: Tensor, lanes: int, window: int, seed: int) -> None:
        required = lanes * (window + 1)
        if len(ids) < required:
            raise CorpusError(
                f"the training text is {len(ids):,} tokens, shorter than one window per lane; {lanes} lanes of "
                f"{window} + 1 tokens take {required:,}: lower batches.lanes or batches.window, or give more text"
            )
        self._ids = ids
        self._lanes = lanes
        self._window = window
        self._seed = seed
        self.windows_per_epoch = (len(ids) // lanes - 1) // window

    def windows(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """The windows of an epoch, from window `start` on."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        offset = int(torch.randint(len(self._ids), (1,), generator=generator))
        length = len(self._ids) // self._lanes
        rolled = torch.roll(self._ids, -offset)[: length * self._lanes].view(self._lanes, length)  # [B, N // B]
        for index in range(start, self.windows_per_epoch):
            at = index * self._window
            yield Window(rolled[:, at : at + self._window], rolled[:, at + 1 : at + self._window + 1])
