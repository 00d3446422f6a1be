"""Perplexity of a text."""

from __future__ import annotations

from collections.abc import Mapping

from carousel.export.forward import start_of
from carousel.export.measure import MEASURES, Measure, relative_perplexity
from carousel.export.progress import Progress
from carousel.models.figures import LanguageValidation
from carousel.models.figures import Measure as Unit
from carousel.models.nn.load import Trained
from carousel.models.nn.score import score_text
from carousel.models.nn.validation import ValidationData


class LanguageMeasure(Measure[LanguageValidation, ValidationData]):
    """Of a language model's one text."""

    figures = LanguageValidation
    data = ValidationData
    unit = "tokens"

    def measured(
        self, trained: Trained, graphs: Mapping[str, bytes] | None, data: ValidationData, progress: Progress
    ) -> LanguageValidation:
        """See Measure."""
        (text,) = data.sequences
        return score_text(start_of(trained.network, graphs)(1), text, data.characters, progress.advance)

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
