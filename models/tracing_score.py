"""How well predicted answers were predicted: the figures that training and export both give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carousel.models.figures import TracingValidation

Floats = npt.NDArray[np.float64]

SMALLEST_PROBABILITY = 1e-12
"""Where the logarithm is taken: one sure mistake does not make the log loss infinite."""


def score(probability: Floats, correct: npt.NDArray[np.bool_]) -> TracingValidation:
    """Judge P(correct) of each attempt by what came of it. <float64>[N], <bool>[N], N at least 1"""
    sure = np.clip(probability, SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    return TracingValidation(
        attempts=len(correct),
        auc=auc(probability, correct),
        accuracy=float(np.mean((probability >= 0.5) == correct)),
        log_loss=float(-np.mean(np.where(correct, np.log(sure), np.log1p(-sure)))),
    )


def auc(probability: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """P(a right answer was given a higher probability than a wrong one), ties counting half; 0.5 where all are alike.

    From ranks (Mann & Whitney 1947): the ranks of the right answers, ties sharing their mean rank, summed.
    """
    right = int(correct.sum())
    wrong = len(correct) - right
    if right == 0 or wrong == 0:
        return 0.5
    _, group, counts = np.unique(probability, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0  # of each distinct probability, counted from 1
    return float((mean_rank[group][correct].sum() - right * (right + 1) / 2.0) / (right * wrong))
