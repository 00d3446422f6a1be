"""What rounding to int8 costs, measured on the data that training validated on; too much is refused.

Axes: B batch rows, T steps, V vocabulary (or skills).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from carousel.export.forward import Forward, GraphForward, TorchForward
from carousel.export.progress import SILENT, Progress
from carousel.models.errors import CarouselError, CheckpointError
from carousel.models.figures import CaptioningValidation, LanguageValidation, Measure, Quantization, TracingValidation
from carousel.models.nn.network import Network
from carousel.models.nn.validation import VALIDATION, CaptioningValidationData, ValidationData, read_validation
from carousel.models.step import Task
from carousel.models.tracing_score import score

Validation = LanguageValidation | TracingValidation | CaptioningValidation
Data = TypeVar("Data", ValidationData, CaptioningValidationData)

MAX_WORSENING: dict[Measure, float] = {"relative perplexity": 0.005, "AUC": 0.002, "BLEU-4": 0.3}
"""What int8 may cost unless told otherwise."""

ONE_SIDED_AUC = 0.5
"""Of answers that were all right or all wrong, whatever was predicted."""

LARGEST_NATS = 700.0
"""Whose exponential a float can still hold."""

MEASURED: dict[Task, str] = {"language": "tokens", "tracing": "attempts"}
"""What is counted while it is measured."""

SAME_FIGURE = 1e-3
"""Relative difference up to which a figure measured here is training's own: another machine sums in another order."""

CHUNK_STEPS = 128
LEARNERS_AT_ONCE = 128
"""Both bound the memory of the outputs and change nothing else: the state is carried, and rows keep to themselves."""


class WorseInt8(CarouselError):
    """Rounding to int8 costs more than is allowed."""


def read_validation_beside(checkpoint: Path, corpus_sha256: str | None, kind: type[Data]) -> Data:
    """The validation data of the run that wrote the checkpoint.

    Args:
        checkpoint: the data lie in its directory.
        corpus_sha256: of the checkpoint's provenance, which must be that of the data.
        kind: what the checkpoint's task is measured on.

    Raises:
        CheckpointError: there are none, or they are those of another task or corpus.
    """
    path = checkpoint.parent / VALIDATION
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file, and int8 is judged by it; run `python -m training RECIPE --resume "
            f"--output {checkpoint.parent}`, which writes it for a finished run too, or export with --precision fp32"
        )
    data = read_validation(path)
    if not isinstance(data, kind):
        raise CheckpointError(f"{path}: holds the validation data of another task than {checkpoint.name} is of")
    if data.corpus_sha256 != corpus_sha256:
        raise CheckpointError(
            f"{path}: belongs to a corpus with sha256 {data.corpus_sha256}; {checkpoint.name} was trained on "
            f"{corpus_sha256}"
        )
    return data


def measure_quantization(
    model: Network,
    graph: bytes,
    data: ValidationData,
    trained: Validation | None,
    max_worsening: float | None = None,
    progress: Progress = SILENT,
) -> tuple[Validation, Quantization]:
    """The figures of an int8 graph, and how they compare with its model's.

    Args:
        model: in evaluation mode.
        graph: its int8 step graph.
        data: what both are measured on.
        trained: the figures that training recorded for the model.
        max_worsening: refuse above it; MAX_WORSENING where None.
        progress: is told.

    Raises:
        CheckpointError: the data are not those that training measured the model on.
        WorseInt8: the graph is worse than the model by more than that.
    """
    task: Task = "language" if data.task == "language" else "tracing"
    total, unit = sum(len(sequence) - 1 for sequence in data.sequences), MEASURED[task]
    progress.stage("measuring the model on the validation data", total, unit)
    before = figures(lambda rows: TorchForward(model, rows), data, progress)
    require_trainings_own(before, trained)
    progress.stage("measuring int8 on them", total, unit)
    step = model.step_module()
    after = figures(lambda rows: GraphForward(graph, step, rows), data, progress)
    return after, judge(before, after, max_worsening)


def require_trainings_own(before: Validation, trained: Validation | None) -> None:
    """See that training measured the model on these data.

    Args:
        before: the model's figures on them.
        trained: the figures that training recorded; nothing is asked where it recorded none.

    Raises:
        CheckpointError: it measured it on others.
    """
    if trained is not None and not _same(before, trained):
        raise CheckpointError(
            f"{VALIDATION}: the model has {_said(before)} on it; training recorded {_said(trained)}, so the file is "
            "not this run's"
        )


def judge(before: Validation, after: Validation, max_worsening: float | None) -> Quantization:
    """What int8 cost.

    Args:
        before: the model's figures.
        after: those of its int8 graph, on the same data.
        max_worsening: refuse above it; MAX_WORSENING where None.

    Raises:
        WorseInt8: the graph is worse than the model by more than that.
    """
    measure, worsening = _worsening(before, after)
    allowed = MAX_WORSENING[measure] if max_worsening is None else max_worsening
    if not worsening <= allowed:  # NaN is refused too
        raise WorseInt8(
            f"int8 has {_said(after)}, fp32 {_said(before)}: worse by {worsening:.5f} in {measure}; "
            f"allowed is {allowed:g} (--max-worsening), so nothing was published"
        )
    return Quantization(fp32=before, measure=measure, worsening=worsening, allowed=allowed)


def figures(
    start: Callable[[int], Forward], data: ValidationData, progress: Progress = SILENT
) -> LanguageValidation | TracingValidation:
    """The validation figures, each sequence read from the zero state to its end, as training reads them.

    Args:
        start: what is measured, for so many rows, in the zero state.
        data: the validation data.
        progress: is told of each token or attempt.
    """
    if data.task == "language":
        return _language_figures(start(1), data, progress)
    return _tracing_figures(start, data, progress)


def _language_figures(forward: Forward, data: ValidationData, progress: Progress) -> LanguageValidation:
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


def _tracing_figures(start: Callable[[int], Forward], data: ValidationData, progress: Progress) -> TracingValidation:
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


def _same(measured: Validation, trained: Validation) -> bool:
    """Whether both are figures of one model on one set of data."""
    if isinstance(measured, LanguageValidation) and isinstance(trained, LanguageValidation):
        pairs = (measured.tokens, trained.tokens), (measured.nats_per_token, trained.nats_per_token)
    elif isinstance(measured, TracingValidation) and isinstance(trained, TracingValidation):
        pairs = (measured.attempts, trained.attempts), (measured.log_loss, trained.log_loss)
    elif isinstance(measured, CaptioningValidation) and isinstance(trained, CaptioningValidation):
        pairs = (measured.images, trained.images), (measured.nats_per_token, trained.nats_per_token)
    else:
        return False
    (count, count_then), (loss, loss_then) = pairs
    return count == count_then and math.isclose(loss, loss_then, rel_tol=SAME_FIGURE)


def _said(figures: Validation) -> str:
    if isinstance(figures, LanguageValidation):
        return f"perplexity {figures.perplexity:.4f} over {figures.tokens:,} tokens"
    if isinstance(figures, CaptioningValidation):
        return (
            f"BLEU-4 {figures.bleu_4:.2f}, {figures.nats_per_token:.4f} nats per token over {figures.images:,} images"
        )
    return f"AUC {figures.auc:.4f}, log loss {figures.log_loss:.4f} over {figures.attempts:,} attempts"


def _worsening(before: Validation, after: Validation) -> tuple[Measure, float]:
    """See models.manifest.Quantization.

    A figure that cannot fall by more than is allowed judges nothing: BLEU-4 near 0, as of captions of three words, and
    the AUC of answers that were all right or all wrong. There perplexity is asked.
    """
    if isinstance(before, LanguageValidation) and isinstance(after, LanguageValidation):
        return "relative perplexity", _relative(before.nats_per_token, after.nats_per_token)
    if isinstance(before, CaptioningValidation) and isinstance(after, CaptioningValidation):
        if before.bleu_4 > MAX_WORSENING["BLEU-4"]:
            return "BLEU-4", before.bleu_4 - after.bleu_4
        return "relative perplexity", _relative(before.nats_per_token, after.nats_per_token)
    assert isinstance(before, TracingValidation)
    assert isinstance(after, TracingValidation)
    if before.auc == after.auc == ONE_SIDED_AUC:
        return "relative perplexity", _relative(before.log_loss, after.log_loss)
    return "AUC", before.auc - after.auc


def _relative(before: float, after: float) -> float:
    """Perplexity divided by what it was, less 1, from the nats: beyond 700 of them perplexities are all alike."""
    return math.expm1(min(after - before, LARGEST_NATS))
