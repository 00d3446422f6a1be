"""Batches of captioned pictures: rectangles of captions that waste little.

Axes: N pictures of a batch, K captions of each, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from carousel.models.strict import Count, Strict

IGNORED = -100
"""A target that no loss is taken of: a word outside the vocabulary, and whatever lies behind a caption's end."""

LENGTH_STEP = 2
"""Pictures are mixed anew each epoch among those whose longest captions differ by less than so many tokens."""


class Vocabulary(Strict):
    """Which words a model of captions can say, and how many at most."""

    min_frequency: Count = 5
    """Words seen less often in the training captions are read as <unk> and never said."""
    max_tokens: Annotated[int, Field(ge=2)] = 24
    """Longest caption, its end token counted; of longer ones the last words are left out."""


class Batches(Strict):
    """How captioned pictures become updates."""

    images: Count = 32
    """N: pictures read side by side."""
    captions: Count = 5
    """K: captions of a picture that share one reading of it; one with more is read several times."""


@dataclass(frozen=True, slots=True)
class Captions:
    """A rectangle of captions."""

    ids: Tensor
    """What each step consumes, the begin token first. <int64>[N, K, T]"""
    targets: Tensor
    """What it should say, the end token last, or IGNORED. <int64>[N, K, T]"""
    present: Tensor
    """False behind a caption's end, and in rows without a caption. <bool>[N, K, T]"""

    def to(self, device: torch.device) -> Captions:
        """The same on another device."""
        return Captions(self.ids.to(device), self.targets.to(device), self.present.to(device))


@dataclass(frozen=True, slots=True)
class CaptionWindow:
    """One update's pictures and captions."""

    images: Tensor
    """As the model's `encode` takes them."""
    captions: Captions
    epoch: int


class Images(Protocol):
    """Where pictures are read from."""

    @property
    def versions(self) -> int:
        """How many there are of each picture."""

    def read(self, places: Sequence[int], versions: Sequence[int]) -> Tensor:
        """Pictures by place, each in the version asked for."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that frame captions and cut them."""

    begin: int
    end: int
    unknown: int
    max_tokens: int


def rectangle(captions: Sequence[Sequence[Sequence[int]]], marks: Marks) -> Captions:
    """Captions of N pictures side by side, rows and steps filled up.

    Args:
        captions: of each picture, the words' ids of each caption; the end token is put behind them here. Of what would
            then be longer than `marks.max_tokens` the last words are left out, not the end: a model that never reads
            one never learns to end.
        marks: the framing ids.
    """
    framed = [[[*ids[: marks.max_tokens - 1], marks.end] for ids in of_image] for of_image in captions]
    rows = max(len(of_image) for of_image in framed)
    steps = max(len(ids) for of_image in framed for ids in of_image)
    fed = np.full((len(framed), rows, steps), marks.begin)
    targets = np.full((len(framed), rows, steps), IGNORED)
    present = np.zeros((len(framed), rows, steps), bool)
    for image, of_image in enumerate(framed):
        for row, ids in enumerate(of_image):
            fed[image, row, 1 : len(ids)] = ids[:-1]
            targets[image, row, : len(ids)] = [IGNORED if id_ == marks.unknown else id_ for id_ in ids]
            present[image, row, : len(ids)] = True
    return Captions(torch.from_numpy(fed), torch.from_numpy(targets), torch.from_numpy(present))


class CaptionBatches:
    """The training pictures and captions as batches.

    A picture with more than K captions is several items. Batches are of items whose longest captions are of about the
    same length; their make-up, their order and the versions of pictures are drawn from (seed, epoch) alone, so an
    epoch can be entered anywhere.

    Args:
        images: the pictures.
        captions: of each picture, the words' ids of each caption.
        marks: the framing ids.
        size: N; the last batch may be smaller.
        captions_each: K.
        seed: of the mixing.
    """

    def __init__(
        self,
        images: Images,
        captions: Sequence[Sequence[Sequence[int]]],
        marks: Marks,
        *,
        size: int,
        captions_each: int,
        seed: int,
    ) -> None:
        self._images, self._marks, self._size, self._seed = images, marks, size, seed
        self._items = [
            (place, of_image[at : at + captions_each])
            for place, of_image in enumerate(captions)
            for at in range(0, len(of_image), captions_each)
        ]
        self._lengths = np.array([max(len(ids) for ids in some) for _, some in self._items]) // LENGTH_STEP
        self.windows_per_epoch = -(-len(self._items) // size)
        self.targets = sum(int((rectangle([some], marks).targets != IGNORED).sum()) for _, some in self._items)
        """Tokens predicted in an epoch."""

    def windows(self, epoch: int, start: int = 0) -> Iterator[CaptionWindow]:
        """The batches of an epoch, from batch `start` on."""
        random = np.random.default_rng([self._seed, epoch])
        order = np.lexsort((random.random(len(self._items)), self._lengths))
        versions = random.integers(self._images.versions, size=len(self._items))
        for index in random.permutation(self.windows_per_epoch)[start:]:
            batch = order[index * self._size : (index + 1) * self._size].tolist()
            images = self._images.read([self._items[item][0] for item in batch], versions[batch].tolist())
            yield CaptionWindow(images, rectangle([self._items[item][1] for item in batch], self._marks), epoch)
