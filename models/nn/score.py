"""How well a network predicts sequences that it has not seen, read from zero state to end as a service would.

Training measures its network so, and export the graphs that are made of it.

Axes: B sequences side by side, T steps, V tokens, S skills, N predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.figures import LanguageValidation
from carousel.models.nn.network import Network

Floats = npt.NDArray[np.float64]
History = npt.NDArray[np.int64]
"""A learner's attempts, `2 * skill + correct` each. <int64>[T]"""

Forward = Callable[[Tensor], Tensor]
"""Reads B sequences on from where its last call ended: ids <int64>[B, T] -> what is served after each, logits or
probabilities <float32>[B, T, V]."""

CHUNK_STEPS = 256
LEARNERS_AT_ONCE = 64
"""Both bound the memory of the outputs and change nothing else: the state is carried, and rows keep to themselves."""

LARGEST_NATS = 700.0
"""Whose exponential a float can still hold."""


class TorchForward:
    """A network in evaluation mode, all steps of a call in its fused kernels.

    Args:
        network: is read with.
        rows: B
    """

    def __init__(self, network: Network, rows: int) -> None:
        self._network = network
        self._state = network.initial_state(rows)

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """See Forward."""
        logits, self._state = self._network(ids.to(next(self._network.parameters()).device), self._state)
        return self._network.served(logits.float()).cpu()


def score_text(
    forward: Forward, ids: Tensor, characters: int, advance: Callable[[int], object] = lambda _: None
) -> LanguageValidation:
    """Predict ids[1:] from ids[:-1].

    Args:
        forward: gives logits, of one row.
        ids: the text. <int64>[T], T at least 2
        characters: how many characters the text has.
        advance: is told how many tokens have been predicted since it was last told.
    """
    ids, total = ids.cpu(), 0.0
    for chunk, targets in zip(torch.split(ids[:-1], CHUNK_STEPS), torch.split(ids[1:], CHUNK_STEPS), strict=True):
        logits = forward(chunk[None])[0]  # [T, V]
        total += functional.cross_entropy(logits, targets, reduction="none").double().sum().item()
        advance(len(targets))
    tokens = len(ids) - 1
    nats = total / tokens
    return LanguageValidation(
        tokens=tokens,
        nats_per_token=nats,
        perplexity=math.exp(min(nats, LARGEST_NATS)),
        bits_per_character=total / math.log(2) / characters,
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to T attempts of B learners, read."""

    learners: Sequence[int]
    """Which of the histories. [B]"""
    at: int
    """Which attempt the first is, counted from 0."""
    ids: Tensor
    """The attempts, and the one that follows them; 0 behind a learner's last. <int64>[B, T + 1]"""
    probability: Tensor
    """After each attempt, P(correct) of the next one at every skill. <float32>[B, T, S]"""


def read(start: Callable[[int], Forward], histories: Sequence[History]) -> Iterator[Chunk]:
    """Read all attempts but each learner's last, a chunk at a time.

    Args:
        start: what reads so many learners, in the zero state, and gives probabilities.
        histories: of all learners.
    """
    by_length = sorted(range(len(histories)), key=lambda index: len(histories[index]))
    for first in range(0, len(by_length), LEARNERS_AT_ONCE):
        chosen = by_length[first : first + LEARNERS_AT_ONCE]
        longest = len(histories[chosen[-1]])
        padded = [np.pad(histories[index], (0, longest - len(histories[index]))) for index in chosen]
        ids = torch.from_numpy(np.stack(padded))  # [B, T + 1]
        forward = start(len(chosen))
        for at in range(0, longest - 1, CHUNK_STEPS):
            end = min(at + CHUNK_STEPS, longest - 1)
            yield Chunk(chosen, at, ids[:, at : end + 1], forward(ids[:, at:end]))


def predict(
    start: Callable[[int], Forward], histories: Sequence[History], advance: Callable[[int], object] = lambda _: None
) -> Floats:
    """P(correct) of each attempt but each learner's first, learner after learner; arguments as above. <float64>[N]"""
    predicted = [np.zeros(len(history) - 1) for history in histories]
    for chunk in read(start, histories):
        asked = chunk.probability.gather(2, (chunk.ids[:, 1:] >> 1)[..., None])[..., 0].numpy()  # [B, T]
        for row, index in zip(asked, chunk.learners, strict=True):
            part = predicted[index][chunk.at : chunk.at + len(row)]
            part[:] = row[: len(part)]
            advance(len(part))
    return np.concatenate(predicted)


def answers(histories: Sequence[History]) -> npt.NDArray[np.bool_]:
    """What is predicted: whether each attempt but each learner's first was right, learner after learner. <bool>[N]"""
    return np.concatenate([history[1:] & 1 for history in histories]).astype(bool)
