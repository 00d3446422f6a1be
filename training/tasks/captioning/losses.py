"""What is added to the cross-entropy of the next word.

Axes: N pictures, K captions of each, T steps, P image positions, V vocabulary.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from carousel.models.strict import NotNegative, Strict
from carousel.training.tasks.captioning.batches import IGNORED


class Loss(Strict):
    """What is added to the loss of the next word, and what a model is led by while it learns."""

    doubly_stochastic: NotNegative = 0.0
    """On the mean over captions and positions of (1 - attention over all steps)^2 (Xu et al. 2015)."""
    words: NotNegative = 0.0
    """On the cross-entropy of which words an image's captions hold, of each word and image; own encoders only."""
    scheduled_sampling: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often, in the last epoch, a word read is one that the model said; rising from 0 (Bengio et al. 2015)."""


def unseen_words(detected: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of which words each image's captions hold, summed over the vocabulary, mean over images.

    Args:
        detected: logits. <float32>[N, V]
        targets: the captions' words, or IGNORED. <int64>[N, K, T]

    Returns:
        <float32>[]
    """
    held = torch.zeros(len(detected), detected.shape[1] + 1, device=detected.device)  # the last for what is ignored
    words = targets.flatten(1)
    held.scatter_(1, torch.where(words == IGNORED, detected.shape[1], words), 1.0)
    return functional.binary_cross_entropy_with_logits(detected, held[:, :-1], reduction="sum") / len(detected)


def uneven_attention(looked: Tensor, present: Tensor) -> Tensor:
    """The doubly stochastic penalty: the mean over captions and positions of (1 - sum over steps of alpha)^2.

    Xu et al. 2015, section 4.2.1, where it is the sum over positions.

    Args:
        looked: alpha of each step. <float32>[N, K, T, P]
        present: the steps that there are. <bool>[N, K, T]

    Returns:
        <float32>[]
    """
    total = (looked * present[..., None]).sum(2)  # [N, K, P]
    return (1.0 - total[present[:, :, 0]]).square().mean()
