"""How well a language model predicts a text that it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.nn.language import LanguageModel

CHUNK_STEPS = 1024
"""Steps per forward pass: bounds the memory of the logits and changes nothing else, since the state is carried."""


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """Cross-entropy of a text under a model."""

    tokens: int
    """Tokens predicted: all but the first."""
    nats_per_token: float
    perplexity: float
    bits_per_character: float
    """The text's total in bits, over all characters of the text."""


@torch.inference_mode()
def score(model: LanguageModel, ids: Tensor, characters: int) -> LanguageScore:
    """Predict ids[1:] from ids[:-1], one stream from the zero state on, as a service would token by token.

    Args:
        model: put into evaluation mode for the time being.
        ids: the text. <int64>[N], N at least 2
        characters: how many characters the text has.
    """
    training = model.training
    model.eval()
    state = model.initial_state(1)
    total = 0.0
    for chunk, targets in zip(torch.split(ids[:-1], CHUNK_STEPS), torch.split(ids[1:], CHUNK_STEPS), strict=True):
        logits, state = model(chunk[None], state)  # [1, T, V]
        total += functional.cross_entropy(logits[0].float(), targets, reduction="none").double().sum().item()
    model.train(training)
    tokens = len(ids) - 1
    nats = total / tokens
    return LanguageScore(tokens, nats, math.exp(min(nats, 700.0)), total / math.log(2) / characters)
