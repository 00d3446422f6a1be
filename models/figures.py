"""How good a model is, as training and export measure it, and what rounding cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from carousel.models.part import Part

Measure = Literal["relative perplexity", "AUC", "BLEU-4"]


class LanguageValidation(Part):
    """Figures on the training run's validation text."""

    tokens: int
    nats_per_token: float
    perplexity: float
    bits_per_character: float


class TracingValidation(Part):
    """Figures on the training run's validation learners: each attempt but a learner's first, predicted."""

    attempts: int
    """How many were predicted."""
    auc: float
    """Area under the ROC curve, over all of them together."""
    accuracy: float
    """Share on the right side of 0.5."""
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


class Quantization(Part):
    """What rounding to int8 cost, measured at export on the training run's validation data."""

    fp32: LanguageValidation | TracingValidation | CaptioningValidation
    """The model's figures before it; what is served has those after it, measured alike."""
    measure: Measure
    """What `worsening` is in: perplexity divided by fp32's, less 1, or the AUC or points of BLEU-4 that were lost. Of
    captions and answers perplexity where the figure of their own cannot move."""
    worsening: float
    """Negative where int8 happens to be better."""
    allowed: float
    """Above it export would have refused."""


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
