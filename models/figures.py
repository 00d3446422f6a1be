"""How good a model is, as training and export measure it, and what rounding cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from carousel.models.part import Part

Measure = Literal["relative perplexity", "AUC", "BLEU-4"]


class LanguageValidation(Part):
    """Figures on the training run's validation text."""

    tokens: int
    """How many were predicted: all but the first."""
    nats_per_token: float
    perplexity: float
    bits_per_character: float
    """The text's total in bits, over all characters of the text."""


class TracingValidation(Part):
    """Figures on the training run's validation learners: each attempt but a learner's first, predicted."""

    attempts: int
    """How many were predicted."""
    auc: float
    """Area under the ROC curve, over all of them together; 0.5 where all answers were right or all wrong."""
    accuracy: float
    """Share of answers on their side of 0.5; 0.5 itself says right."""
    log_loss: float
    """Nats per attempt."""


class CaptioningValidation(Part):
    """Figures on the training run's validation images."""

    images: int
    beam_width: int
    """That the captions were decoded with."""
    length_penalty: float
    bleu_1: float
    bleu_4: float
    """Of the whole corpus, in [0, 100]."""
    nats_per_token: float
    """Of the reference captions, end tokens counted."""


class Figures(Part):
    """Of what is served, on the training run's validation data, by name; and before rounding, where it was rounded."""

    served: Mapping[str, int | float] | None = None
    """Training's own figures for fp32, measured at export for int8."""
    fp32: Mapping[str, int | float] | None = None
    """Before rounding to int8, measured alike."""
    measure: str | None = None
    """What `worsening` is in: perplexity divided by fp32's, less 1, or the AUC or points of BLEU-4 that were lost. Of
    captions and answers perplexity where the figure of their own cannot move."""
    worsening: float | None = None
    """Negative where int8 happens to be better."""
    allowed_worsening: float | None = None
    """Above it export would have refused."""
