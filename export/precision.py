"""What rounding to int8 costs, measured on the data that training validated on; too much is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carousel.export.measure import MEASURES, Data, Measure
from carousel.export.progress import SILENT, Progress
from carousel.models.errors import CarouselError, CheckpointError
from carousel.models.figures import Figures
from carousel.models.figures import Measure as Unit
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import VALIDATION, read_validation
from carousel.models.part import Part

MAX_WORSENING: dict[Unit, float] = {"relative perplexity": 0.005, "AUC": 0.002, "BLEU-4": 0.3}
"""What int8 may cost unless told otherwise."""

SAME_FIGURE = 1e-3
"""Relative difference up to which a figure measured here is training's own: another machine sums in another order."""


class WorseInt8(CarouselError):
    """Rounding to int8 costs more than is allowed."""


def measure_of(checkpoint: Path, task: str) -> Measure[Any, Any]:
    """What measures the models of a task.

    Raises:
        CheckpointError: nothing does.
    """
    if task not in MEASURES.choices:
        allowed = ", ".join(MEASURES)
        raise CheckpointError(
            f"{checkpoint}: is of task {task!r}, and what int8 costs is measured of {allowed}; export with "
            "--precision fp32"
        )
    return MEASURES[task]


def read_validation_beside(checkpoint: Path, corpus_sha256: str | None, measure: Measure[Any, Any]) -> Data:
    """The validation data of the run that wrote the checkpoint.

    Args:
        checkpoint: the data lie in its directory.
        corpus_sha256: of the checkpoint's provenance, which must be that of the data.
        measure: of the checkpoint's task.

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
    if not isinstance(data, measure.data):
        raise CheckpointError(f"{path}: holds the validation data of another task than {checkpoint.name} is of")
    if data.corpus_sha256 != corpus_sha256:
        raise CheckpointError(
            f"{path}: belongs to a corpus with sha256 {data.corpus_sha256}; {checkpoint.name} was trained on "
            f"{corpus_sha256}"
        )
    return data


def measure_quantization(
    measure: Measure[Any, Any],
    trained: Trained,
    graphs: Mapping[str, bytes],
    data: Data,
    max_worsening: float | None = None,
    progress: Progress = SILENT,
) -> Figures:
    """The figures of int8 graphs, and how they compare with their network's.

    Args:
        measure: of its task.
        trained: the network.
        graphs: its int8 graphs, by file.
        data: what both are measured on.
        max_worsening: refuse above it; MAX_WORSENING where None.
        progress: is told.

    Raises:
        CheckpointError: the data are not those that training measured the network on.
        WorseInt8: the graphs are worse than the network by more than that.
    """
    progress.stage("measuring the model on the validation data", data.count, measure.unit)
    before = measure.measured(trained, None, data, progress)
    if trained.validation is not None:
        _require_trainings_own(measure, before, measure.figures.model_validate(trained.validation))
    progress.stage("measuring int8 on them", data.count, measure.unit)
    after = measure.measured(trained, graphs, data, progress)
    return judge(measure, before, after, max_worsening)


def _require_trainings_own(measure: Measure[Any, Any], before: Part, recorded: Part) -> None:
    """See that training measured the network on these data.

    Raises:
        CheckpointError: it measured it on others.
    """
    (count, nats), (count_then, nats_then) = measure.kept(before), measure.kept(recorded)
    if count != count_then or not math.isclose(nats, nats_then, rel_tol=SAME_FIGURE):
        raise CheckpointError(
            f"{VALIDATION}: the model has {measure.told(before)} on it; training recorded {measure.told(recorded)}, so "
            "the file is not this run's"
        )


def judge(measure: Measure[Any, Any], before: Any, after: Any, max_worsening: float | None) -> Figures:
    """The figures of both, and what int8 cost.

    Args:
        measure: of the task.
        before: the network's figures.
        after: those of its int8 graphs, on the same data.
        max_worsening: refuse above it; MAX_WORSENING where None.

    Raises:
        WorseInt8: the graphs are worse than the network by more than that.
    """
    unit, worsening = measure.worsening(before, after)
    allowed = MAX_WORSENING[unit] if max_worsening is None else max_worsening
    if not worsening <= allowed:  # NaN is refused too
        raise WorseInt8(
            f"int8 has {measure.told(after)}, fp32 {measure.told(before)}: worse by {worsening:.5f} in {unit}; "
            f"allowed is {allowed:g} (--max-worsening), so nothing was published"
        )
    return Figures(
        served=after.model_dump(),
        fp32=before.model_dump(),
        measure=unit,
        worsening=worsening,
        allowed_worsening=allowed,
    )
