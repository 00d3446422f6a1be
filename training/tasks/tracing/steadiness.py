"""How steadily a tracing model's picture of a learner moves: DKT+'s measures (Yeung & Yeung 2018, arXiv:1806.02180).

Axes: B learners, T attempts, S skills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from carousel.models.nn.score import Forward, History, read


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Means over the attempts that another was read before and that are not a learner's last; 0 where there are none.

    Let move[s] = P(s right) after the attempt, less what it was before.
    """

    w1: float
    """Waviness: mean |move| over all skills."""
    w2: float
    """The same, as the root of the mean square."""
    m1: float
    """Consistency: the share of answers that moved their own skill their own way, less the share of those that moved it
    the other: in [-1, 1]."""
    m2: float
    """Mean move of the answer's own skill, counted downwards where the answer was wrong."""


def steadiness(start: Callable[[int], Forward], histories: Sequence[History]) -> Steadiness:
    """Measure the validation learners' moves.

    Args:
        start: what reads so many learners (models.nn.score.read).
        histories: attempts, 2 * skill + correct.
    """
    count, sums = 0, torch.zeros(4, dtype=torch.float64)
    before = torch.empty(0)  # the probabilities that the chunk before ended with <float32>[B, 1, S]
    for chunk in read(start, histories):
        probability = chunk.probability
        first = 1 if chunk.at == 0 else 0
        if not first:
            probability = torch.cat([before, probability], dim=1)
        before = probability[:, -1:]
        ids = chunk.ids[:, first:-1]  # [B, T]: the attempts that were moved by
        move = probability.diff(dim=1)  # [B, T, S]
        own = move.gather(2, (ids >> 1)[..., None])[..., 0] * (2 * (ids & 1) - 1)  # [B, T]
        ends = torch.tensor([len(histories[index]) - 1 for index in chunk.learners])
        present = chunk.at + first + torch.arange(ids.shape[1]) < ends[:, None]  # [B, T]
        rows = torch.stack([move.abs().mean(2), move.square().mean(2), own.sign(), own], dim=2)  # [B, T, 4]
        count += int(present.sum())
        sums += rows[present].double().sum(0)
    w1, square, m1, m2 = (sums / max(count, 1)).tolist()
    return Steadiness(w1, square**0.5, m1, m2)
