"""AUC and log loss of learners' answers."""

from __future__ import annotations

from collections.abc import Mapping

from carousel.export.forward import start_of
from carousel.export.measure import MEASURES, Measure, relative_perplexity
from carousel.export.progress import Progress
from carousel.models.figures import Measure as Unit
from carousel.models.figures import TracingValidation
from carousel.models.nn.load import Trained
from carousel.models.nn.score import answers, predict
from carousel.models.nn.validation import ValidationData
from carousel.models.tracing_score import score

ONE_SIDED_AUC = 0.5
"""Of answers that were all right or all wrong, whatever was predicted."""


class TracingMeasure(Measure[TracingValidation, ValidationData]):
    """Of the validation learners: each attempt but a learner's first, predicted."""

    figures = TracingValidation
    data = ValidationData
    unit = "attempts"

    def measured(
        self, trained: Trained, graphs: Mapping[str, bytes] | None, data: ValidationData, progress: Progress
    ) -> TracingValidation:
        """See Measure."""
        histories = [sequence.numpy() for sequence in data.sequences]
        predicted = predict(start_of(trained.network, graphs), histories, progress.advance)
        return score(predicted, answers(histories))

    def kept(self, figures: TracingValidation) -> tuple[int, float]:
        """See Measure."""
        return figures.attempts, figures.log_loss

    def told(self, figures: TracingValidation) -> str:
        """See Measure."""
        return f"AUC {figures.auc:.4f}, log loss {figures.log_loss:.4f} over {figures.attempts:,} attempts"

    def worsening(self, before: TracingValidation, after: TracingValidation) -> tuple[Unit, float]:
        """See Measure."""
        if before.auc == after.auc == ONE_SIDED_AUC:
            return "relative perplexity", relative_perplexity(before.log_loss, after.log_loss)
        return "AUC", before.auc - after.auc


MEASURES.register("tracing")(TracingMeasure())
