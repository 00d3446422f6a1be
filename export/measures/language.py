"""Perplexity of a text.

Axes: T steps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from carousel.export.forward import Forward, GraphForward, TorchForward
from carousel.export.measure import LARGEST_NATS, MEASURES, Data, Measure, relative_perplexity
from carousel.export.progress import SILENT, Progress
from carousel.models.figures import LanguageValidation
from carousel.models.figures import Measure as Unit
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import ValidationData
from carousel.models.step import STEP_GRAPH

CHUNK_STEPS = 128
"""Bounds the memory of the outputs and changes nothing else: the state is carried."""


class LanguageMeasure(Measure[LanguageValidation]):
    """Of a language model's one text."""

    figures = LanguageValidation
    unit = "tokens"

    def count(self, data: Data) -> int:
        """See Measure."""
        return sum(len(sequence) - 1 for sequence in _text(data).sequences)

    def measured(
        self, trained: Trained, graphs: Mapping[str, bytes] | None, data: Data, progress: Progress
    ) -> LanguageValidation:
        """See Measure."""
        network = trained.network
        if graphs is None:
            return language_figures(TorchForward(network, 1), _text(data), progress)
        return language_figures(GraphForward(graphs[STEP_GRAPH], network.step_module(), 1), _text(data), progress)

    def kept(self, figures: LanguageValidation) -> tuple[int, float]:
        """See Measure."""
        return figures.tokens, figures.nats_per_token

    def told(self, figures: LanguageValidation) -> str:
        """See Measure."""
        return f"perplexity {figures.perplexity:.4f} over {figures.tokens:,} tokens"

    def worsening(self, before: LanguageValidation, after: LanguageValidation) -> tuple[Unit, float]:
        """See Measure."""
        return "relative perplexity", relative_perplexity(before.nats_per_token, after.nats_per_token)


MEASURES.register("language")(LanguageMeasure())


def _text(data: Data) -> ValidationData:
    if not isinstance(data, ValidationData):
        raise TypeError("no text")
    return data


def language_figures(forward: Forward, data: ValidationData, progress: Progress = SILENT) -> LanguageValidation:
    """The figures of one stream from the zero state on, as training reads it."""
    (sequence,) = data.sequences
    ids = sequence.numpy()
    total = 0.0
    for start in range(0, len(ids) - 1, CHUNK_STEPS):
        targets = ids[start + 1 : start + 1 + CHUNK_STEPS]
        logits = forward(ids[None, start : start + len(targets)])[0].astype(np.float64)  # [T, V]
        largest = logits.max(axis=1)
        normalizer = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
        total += float((normalizer - logits[np.arange(len(targets)), targets]).sum())
        progress.advance(len(targets))
    tokens = len(ids) - 1
    nats = total / tokens
    return LanguageValidation(
        tokens=tokens,
        nats_per_token=nats,
        perplexity=math.exp(min(nats, LARGEST_NATS)),
        bits_per_character=total / math.log(2) / data.characters,
    )
