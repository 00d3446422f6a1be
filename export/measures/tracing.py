"""AUC and log loss of learners' answers.

Axes: B learners, T attempts, S skills.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from carousel.export.forward import Forward, GraphForward, TorchForward
from carousel.export.measure import MEASURES, Data, Measure, relative_perplexity
from carousel.export.progress import SILENT, Progress
from carousel.models.figures import Measure as Unit
from carousel.models.figures import TracingValidation
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import ValidationData
from carousel.models.step import STEP_GRAPH
from carousel.models.tracing_score import score

ONE_SIDED_AUC = 0.5
"""Of answers that were all right or all wrong, whatever was predicted."""

CHUNK_STEPS = 128
LEARNERS_AT_ONCE = 128
"""Both bound the memory of the outputs and change nothing else: the state is carried, and rows keep to themselves."""


class TracingMeasure(Measure[TracingValidation]):
    """Of the validation learners: each attempt but a learner's first, predicted."""

    figures = TracingValidation
    unit = "attempts"

    def count(self, data: Data) -> int:
        """See Measure."""
        return sum(len(sequence) - 1 for sequence in _histories(data).sequences)

    def measured(
        self, trained: Trained, graphs: Mapping[str, bytes] | None, data: Data, progress: Progress
    ) -> TracingValidation:
        """See Measure."""
        network = trained.network
        if graphs is None:
            return tracing_figures(lambda rows: TorchForward(network, rows), _histories(data), progress)
        graph, step = graphs[STEP_GRAPH], network.step_module()
        return tracing_figures(lambda rows: GraphForward(graph, step, rows), _histories(data), progress)

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


def _histories(data: Data) -> ValidationData:
    if not isinstance(data, ValidationData):
        raise TypeError("no histories")
    return data


def tracing_figures(
    start: Callable[[int], Forward], data: ValidationData, progress: Progress = SILENT
) -> TracingValidation:
    """The figures, each learner read from the zero state to the end, as training reads it.

    Args:
        start: what is measured, for so many rows, in the zero state.
        data: the learners' attempts.
        progress: is told of each attempt.
    """
    histories = sorted((sequence.numpy() for sequence in data.sequences), key=len)
    predicted, correct = [], []
    for first in range(0, len(histories), LEARNERS_AT_ONCE):
        chosen = histories[first : first + LEARNERS_AT_ONCE]
        longest = len(chosen[-1])
        ids = np.stack([np.pad(history, (0, longest - len(history))) for history in chosen])  # [B, T + 1]
        present = np.arange(longest) < np.array([len(history) for history in chosen])[:, None]
        forward = start(len(chosen))
        for at in range(0, longest - 1, CHUNK_STEPS):
            end = min(at + CHUNK_STEPS, longest - 1)
            probability = forward(ids[:, at:end])  # [B, T, S]
            asked, there = ids[:, at + 1 : end + 1], present[:, at + 1 : end + 1]
            predicted.append(np.take_along_axis(probability, (asked >> 1)[..., None], axis=2)[..., 0][there])
            correct.append((asked & 1).astype(bool)[there])
            progress.advance(int(there.sum()))
    return TracingValidation(**asdict(score(np.concatenate(predicted).astype(np.float64), np.concatenate(correct))))
