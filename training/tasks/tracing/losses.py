"""The loss of the next answers, and DKT+'s terms.

Axes: B learners, T attempts, S skills.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.strict import NotNegative, Strict
from carousel.training.tasks.tracing.histories import HistoryWindow


class Loss(Strict):
    """What is added to the loss of the next answer (DKT+, Yeung & Yeung 2018, arXiv:1806.02180)."""

    reconstruction: NotNegative = 0.0
    """lambda_r: on the loss of the answer just seen."""
    waviness_l1: NotNegative = 0.0
    """lambda_w1: on the mean |change| of a probability from one attempt to the next."""
    waviness_l2: NotNegative = 0.0
    """lambda_w2: on the mean squared change."""


def tracing_loss(logits: Tensor, window: HistoryWindow, terms: Loss) -> Tensor:
    """Binary cross-entropy of the next answers in nats, summed over the attempts present, and DKT+'s terms.

    DKT+ (Yeung & Yeung 2018, arXiv:1806.02180) adds the cross-entropy of the answer just seen, and the mean over
    skills of how far probabilities move from one attempt to the next, absolute and squared. Moves across a window's
    edge are not counted.

    Args:
        logits: after each attempt, of the next one at every skill. <float32>[B, T, S]
        window: the attempts.
        terms: the weights of DKT+'s terms, each 0 where it is left out.

    Returns:
        <float32>[]
    """
    total = _cross_entropy(logits, window.targets, window.present)
    if terms.reconstruction:
        total = total + terms.reconstruction * _cross_entropy(logits, window.ids, window.present)
    if terms.waviness_l1 or terms.waviness_l2:
        probability = torch.sigmoid(logits)
        move = (probability[:, 1:] - probability[:, :-1]) * window.present[:, 1:, None]  # [B, T - 1, S]
        total = total + terms.waviness_l1 * move.abs().mean(2).sum() + terms.waviness_l2 * move.square().mean(2).sum()
    return total


def _cross_entropy(logits: Tensor, attempts: Tensor, present: Tensor) -> Tensor:
    asked = logits.gather(2, (attempts >> 1)[..., None])[..., 0]  # [B, T]
    losses = functional.binary_cross_entropy_with_logits(asked, (attempts & 1).float(), reduction="none")
    return (losses * present).sum()
