"""From a checkpoint to a published bundle: load, export, prove, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from carousel.export.captioning import EncoderMaking
from carousel.export.making import Making, StepMaking
from carousel.export.measure import MEASURES
from carousel.export.precision import measure_of, measure_quantization, read_validation_beside
from carousel.export.progress import SILENT, Progress
from carousel.export.shared_weights import share_weights
from carousel.export.signature import declared
from carousel.models.bundle import publish, require_publishable
from carousel.models.errors import CheckpointError
from carousel.models.figures import Figures
from carousel.models.manifest import DecodingDefaults, Limits, Manifest, Parity, Precision
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.load import Trained, load
from carousel.models.part import first_mistake
from carousel.models.weights import WEIGHTS

BEST = "best.safetensors"
"""The checkpoint of a run directory that is exported."""

Part = TypeVar("Part", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Export:
    """What one export did."""

    checkpoint: Path
    bundle: Path
    graph_bytes: Mapping[str, int]
    """By the name of a graph's file, or of that of the weights which graphs share."""
    parity: Parity
    figures: Figures | None
    """As the manifest has them; None where training recorded none."""
    no_prefill: str = ""
    """Why the bundle has no prefill graph, where an int8 bundle has none."""
    in_fp32: Sequence[str] = ()
    """Of each product of an int8 step that is still in fp32: why."""


def export_checkpoint(
    path: Path,
    repository: Path,
    name: str,
    *,
    encoder: Path | None = None,
    limits: Limits | None = None,
    decoding: DecodingDefaults | None = None,
    precision: Precision = "fp32",
    max_worsening: float | None = None,
    progress: Progress = SILENT,
) -> Export:
    """Publish the model of a checkpoint as the next version of `name`.

    Args:
        path: a checkpoint file, or a run directory (its best checkpoint is taken).
        repository: the model repository, made where there is none.
        name: the model's name in it.
        encoder: the ONNX file whose features a captioning model was trained on; None where it has one of its own.
        limits: what a request may ask; where a field is not set, what the checkpoint says, or else the contract.
        decoding: parameters of a request that names none; filled in likewise.
        precision: of the graph's products. int8 takes the run's validation data, beside the checkpoint.
        max_worsening: what int8 may cost in relative perplexity, AUC or BLEU-4; the task's own bound where None.
        progress: is told of each stage, of which int8's take a minute or more.

    Raises:
        CheckpointError: the checkpoint or its validation data cannot be read.
        ExtractorError: `encoder` is not the one that the checkpoint was trained on, or must not be given.
        ParityError: a graph is not the model.
        NoBound: a product of an int8 graph reads what is no number on the validation data.
        WorseInt8: rounding costs more than is allowed.
        BundleError: the name is not allowed, or the repository is no directory.
    """
    require_publishable(repository, name)
    if path.is_dir():
        path = path / BEST
    trained = load(read_checkpoint(path))
    making_type: type[Making] = EncoderMaking if trained.network.encodes else StepMaking
    making = making_type(path, trained, encoder)
    figures = _recorded(path, trained)
    if precision == "int8":
        measure = measure_of(path, trained.task)
        corpus = trained.provenance.corpus_sha256 if trained.provenance else None
        data = read_validation_beside(path, corpus, measure)
        progress.stage("building the int8 graphs")
        int8 = making.int8(data)
        figures = measure_quantization(measure, trained, int8, data, max_worsening, progress)
        progress.stage("comparing the graphs with the model, step by step and row by row")
        graphs, parity = making.proven(int8, progress)
    else:
        progress.stage("building the graphs, and comparing them with the model")
        graphs, parity = making.proven(None, progress)
    files = share_weights(graphs)
    manifest = Manifest(
        task=trained.task,
        **declared(graphs, trained.network.step_module()),
        ports=trained.ports,
        codecs=trained.codecs,
        head=trained.head,
        limits=_filled(limits or Limits(), trained.limits),
        decoding=_filled(decoding or DecodingDefaults(), trained.decoding),
        precision=precision,
        parity=parity,
        figures=figures,
        provenance=trained.provenance,
        weights=WEIGHTS if WEIGHTS in files else None,
        files={},
    )
    sizes = {file: len(content) for file, content in files.items()}
    progress.stage("publishing")
    bundle = publish(repository, name, manifest, {**files, **trained.files})
    return Export(path, bundle, sizes, parity, figures, making.no_prefill, making.in_fp32)


def _recorded(path: Path, trained: Trained) -> Figures | None:
    """The figures that training recorded, which are those of fp32.

    Raises:
        CheckpointError: they are not those of the task.
    """
    if trained.validation is None:
        return None
    try:
        if trained.task in MEASURES.choices:
            return Figures(served=MEASURES[trained.task].figures.model_validate(trained.validation).model_dump())
        return Figures(served=trained.validation)
    except ValidationError as error:
        raise CheckpointError(f"{path}: header {first_mistake(error, 'validation')}") from None


def _filled(asked: Part, said: Part) -> Part:
    """What is asked for, and where nothing is, what the checkpoint says."""
    return said.model_copy(update=asked.model_dump(exclude_unset=True))
