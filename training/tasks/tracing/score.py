"""A tracing model's predictions for learners whom it has not seen.

Every attempt but each learner's first is predicted, from the learner's whole history before it, and all of them are
judged together ("pooled"), as published figures are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carousel.models.nn.tracing import TracingModel

Floats = npt.NDArray[np.float64]
History = npt.NDArray[np.int64]

LEARNERS_AT_ONCE = 64
CHUNK_STEPS = 64
"""Both bound the memory of the logits and change nothing else, since the state is carried."""


def answers(histories: Sequence[History]) -> npt.NDArray[np.bool_]:
    """What is predicted: whether each attempt but each learner's first was right, learner after learner. <bool>[N]"""
    return np.concatenate([history[1:] & 1 for history in histories]).astype(bool)


def predict(model: TracingModel, histories: Sequence[History]) -> Floats:
    """P(correct) of each attempt but each learner's first, learner after learner. <float64>[N]

    Args:
        model: put into evaluation mode for the time being.
        histories: attempts, 2 * skill + correct.
    """
    predicted = [np.zeros(len(history) - 1) for history in histories]
    for chunk in read(model, histories):
        probability = torch.sigmoid(chunk.of_next).cpu().double().numpy()  # [B, T]
        for row, index in enumerate(chunk.learners):
            part = predicted[index][chunk.at : chunk.at + probability.shape[1]]
            part[:] = probability[row, : len(part)]
    return np.concatenate(predicted)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to T attempts of B learners, read."""

    learners: Sequence[int]
    """Which of the histories. [B]"""
    at: int
    """Which attempt the first is, counted from 0."""
    ids: Tensor
    """The attempts, and the one that follows them; 0 behind a learner's last. <int64>[B, T + 1]"""
    logits: Tensor
    """After each attempt, of the next one at every skill. <float32>[B, T, S]"""

    @property
    def of_next(self) -> Tensor:
        """The logit of what was tried next. <float32>[B, T]"""
        return self.logits.gather(2, (self.ids[:, 1:] >> 1)[..., None])[..., 0]


@torch.inference_mode()
def read(model: TracingModel, histories: Sequence[History]) -> Iterator[Chunk]:
    """Read all attempts but each learner's last, a chunk at a time, in evaluation mode.

    Each learner starts from the zero state and the state is carried to the end, as a service would attempt by attempt.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    by_length = sorted(range(len(histories)), key=lambda index: len(histories[index]))
    for start in range(0, len(by_length), LEARNERS_AT_ONCE):
        chosen = by_length[start : start + LEARNERS_AT_ONCE]
        longest = len(histories[chosen[-1]]) - 1
        padded = np.zeros((len(chosen), longest + 1), np.int64)  # [B, T + 1]
        for row, index in enumerate(chosen):
            padded[row, : len(histories[index])] = histories[index]
        ids = torch.from_numpy(padded).to(device)
        state = model.initial_state(len(chosen))
        for at in range(0, longest, CHUNK_STEPS):
            end = min(at + CHUNK_STEPS, longest)
            logits, state = model(ids[:, at:end], state)  # [B, T, S]
            yield Chunk(chosen, at, ids[:, at : end + 1], logits.float())
    model.train(training)
