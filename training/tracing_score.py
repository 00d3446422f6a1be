"""How well predicted answers were predicted.

Every attempt but each learner's first is predicted, from the learner's whole history before it, and all of them are
judged together ("pooled"), as published figures are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.nn.tracing import TracingModel

Floats = npt.NDArray[np.float64]
History = npt.NDArray[np.int64]

LEARNERS_AT_ONCE = 64
CHUNK_STEPS = 256
"""Both bound the memory of the logits and change nothing else, since the state is carried."""

SMALLEST_PROBABILITY = 1e-12
"""Where the logarithm is taken: one sure mistake does not make the log loss infinite."""


@dataclass(frozen=True, slots=True)
class TracingScore:
    """The figures of a set of predictions."""

    attempts: int
    """Attempts predicted."""
    auc: float
    """Area under the ROC curve; 0.5 where all answers were right or all wrong."""
    accuracy: float
    """Share of answers on their side of 0.5; 0.5 itself says right."""
    log_loss: float
    """Mean of -ln P(answer), in nats."""


def score(probability: Floats, correct: npt.NDArray[np.bool_]) -> TracingScore:
    """Judge P(correct) of each attempt by what came of it. <float64>[N], <bool>[N], N at least 1"""
    sure = np.clip(probability, SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    return TracingScore(
        attempts=len(correct),
        auc=auc(probability, correct),
        accuracy=float(np.mean((probability >= 0.5) == correct)),
        log_loss=float(-np.mean(np.where(correct, np.log(sure), np.log1p(-sure)))),
    )


def auc(probability: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """P(a right answer was given a higher probability than a wrong one), ties counting half.

    From ranks (Mann & Whitney 1947): the ranks of the right answers, ties sharing their mean rank, summed.
    """
    right = int(correct.sum())
    wrong = len(correct) - right
    if right == 0 or wrong == 0:
        return 0.5
    _, group, counts = np.unique(probability, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0  # of each distinct probability, counted from 1
    return float((mean_rank[group][correct].sum() - right * (right + 1) / 2.0) / (right * wrong))


def answers(histories: Sequence[History]) -> npt.NDArray[np.bool_]:
    """What is predicted: whether each attempt but each learner's first was right, learner after learner. <bool>[N]"""
    return np.concatenate([history[1:] & 1 for history in histories]).astype(bool)


@torch.inference_mode()
def predict(model: TracingModel, histories: Sequence[History]) -> Floats:
    """P(correct) of each attempt but each learner's first, learner after learner. <float64>[N]

    Each learner starts from the zero state and the state is carried to the end, as a service would attempt by attempt.

    Args:
        model: put into evaluation mode for the time being.
        histories: attempts, 2 * skill + correct.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    predicted: list[Floats] = [np.zeros(0)] * len(histories)
    by_length = sorted(range(len(histories)), key=lambda index: len(histories[index]))
    for start in range(0, len(by_length), LEARNERS_AT_ONCE):
        chosen = by_length[start : start + LEARNERS_AT_ONCE]
        longest = len(histories[chosen[-1]]) - 1
        padded = np.zeros((len(chosen), longest + 1), np.int64)  # [B, T + 1]
        for row, index in enumerate(chosen):
            padded[row, : len(histories[index])] = histories[index]
        ids = torch.from_numpy(padded).to(device)
        state = model.initial_state(len(chosen))
        chunks = []
        for at in range(0, longest, CHUNK_STEPS):
            end = min(at + CHUNK_STEPS, longest)
            logits, state = model(ids[:, at:end], state)  # [B, T, S]
            asked = (ids[:, at + 1 : end + 1] >> 1)[..., None]
            chunks.append(torch.sigmoid(logits.float().gather(2, asked)[..., 0]).cpu().double().numpy())
        probability = np.concatenate(chunks, axis=1) if chunks else np.zeros((len(chosen), 0))
        for row, index in enumerate(chosen):
            predicted[index] = probability[row, : len(histories[index]) - 1]
    model.train(training)
    return np.concatenate(predicted)
