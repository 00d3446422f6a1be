"""Dropout for recurrent networks: one mask for all steps, and masks on recurrent weights.

Axes: B batch rows, T steps, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LockedDropout(nn.Module):
    """Variational dropout: each row draws one mask over features and keeps it for all T steps.

    Gal & Ghahramani 2016, arXiv:1512.05287.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Mask and rescale x in training; give it back unchanged in evaluation. <float>[T, B, H]"""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = torch.empty(1, x.shape[1], x.shape[2], dtype=x.dtype, device=x.device).bernoulli_(keep)  # [1, B, H]
        return x * mask / keep


def sequence_dropout(probability: float, locked: bool) -> nn.Module:
    """Dropout over [T, B, H]: locked over time, or drawn anew at each step (Zaremba et al. 2014, arXiv:1409.2329)."""
    return LockedDropout(probability) if locked else nn.Dropout(probability)


def drop_weight(weight: Tensor, probability: float, training: bool) -> Tensor:
    """DropConnect on a recurrent matrix, one mask for all steps of a window (Merity et al. 2017, arXiv:1708.02182)."""
    return functional.dropout(weight, probability, training)


def drop_words(weight: Tensor, probability: float) -> Tensor:
    """Embedding dropout: whole rows of the table <float>[V, E] are zeroed for a window (Gal & Ghahramani 2016)."""
    keep = 1.0 - probability
    mask = torch.empty(weight.shape[0], 1, dtype=weight.dtype, device=weight.device).bernoulli_(keep)  # [V, 1]
    return weight * mask / keep
