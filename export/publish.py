"""From a checkpoint to a published bundle: load, export, prove, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from carousel.export.captioning import captioning_graphs, extractor_of, int8_captioning_graphs
from carousel.export.captioning_precision import measure_captioning_quantization
from carousel.export.extractor import ExtractorError
from carousel.export.int8_graph import build_int8_step
from carousel.export.int8_prefill import build_int8_prefill
from carousel.export.onnx_graph import export_step
from carousel.export.parity import ParityError, measure_parity
from carousel.export.precision import measure_quantization, read_validation_beside
from carousel.export.prefill_parity import require_same_states
from carousel.export.progress import SILENT, Progress
from carousel.export.shared_weights import share_weights
from carousel.export.signature import SKILLS, TOKENIZER, declared
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, publish, require_publishable
from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CheckpointError
from carousel.models.figures import CaptioningValidation, Figures, LanguageValidation, Quantization, TracingValidation
from carousel.models.manifest import DecodingDefaults, Limits, Manifest, Parity, Precision, Provenance
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.checkpoint import (
    Checkpoint,
    frozen_encoder,
    load_captioning_model,
    load_language_model,
    load_tracing_model,
    read_checkpoint,
)
from carousel.models.nn.network import Network, StepModule
from carousel.models.nn.validation import CaptioningValidationData, ValidationData
from carousel.models.step import STEP_INPUTS, Task, prefill_name
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
    quantization: Quantization | None
    """What int8 cost; None for fp32."""
    no_prefill: str = ""
    """Why the bundle has no prefill graph, where an int8 bundle has none."""


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
        WorseInt8: rounding costs more than is allowed.
        BundleError: the name is not allowed, or the repository is no directory.
    """
    require_publishable(repository, name)
    if path.is_dir():
        path = path / BEST
    checkpoint = read_checkpoint(path)
    loaded = _load(path, checkpoint)
    if encoder is not None and loaded.task != "captioning":
        raise ExtractorError(f"{path}: is of task {loaded.task!r}, which reads no images; leave out --encoder")
    validation = _header_part(path, checkpoint.header, "validation", loaded.validation)
    provenance = _header_part(path, checkpoint.header, "provenance", Provenance)
    quantization, no_prefill = None, ""
    if precision == "int8":
        corpus = provenance.corpus_sha256 if provenance else None
        model = loaded.model
        if isinstance(model, CaptioningModel):
            assert isinstance(loaded.codec, CaptionCodec)
            assert isinstance(validation, CaptioningValidation | None)
            extractor = extractor_of(path, frozen_encoder(checkpoint), encoder)
            images = read_validation_beside(path, corpus, CaptioningValidationData)
            preprocessing = loaded.codec.preprocessing
            progress.stage("building the int8 graphs")
            int8 = int8_captioning_graphs(model, preprocessing, images)
            validation, quantization = measure_captioning_quantization(
                model,
                int8[STEP_GRAPH],
                int8.get(ENCODER_GRAPH),
                loaded.codec,
                images,
                validation,
                loaded.decoding,
                loaded.limits.max_new_tokens,
                max_worsening,
                progress,
            )
            progress.stage("comparing the graphs with the model, step by step and row by row")
            graphs, parity = captioning_graphs(model, preprocessing, extractor, int8)
        else:
            data = read_validation_beside(path, corpus, ValidationData)
            progress.stage("building the int8 graph")
            graph = build_int8_step(model.step_module())
            assert not isinstance(validation, CaptioningValidation)
            validation, quantization = measure_quantization(model, graph, data, validation, max_worsening, progress)
            progress.stage("comparing the graph with the model, step by step and row by row")
            graphs, parity = {STEP_GRAPH: graph}, measure_parity(model, graph, precision)
            progress.stage("building the prefill graphs, and comparing their states")
            try:
                graphs |= _int8_prefill(model.step_module(), graph)
            except ParityError as error:
                no_prefill = str(error)
    else:
        progress.stage("building the graphs, and comparing them with the model")
        graphs, parity = _fp32_graphs(path, checkpoint, loaded, encoder)
    files = share_weights(graphs)
    manifest = Manifest(
        task=loaded.task,
        **declared(loaded.task, graphs, loaded.codec),
        limits=_filled(limits or Limits(), loaded.limits),
        decoding=_filled(decoding or DecodingDefaults(), loaded.decoding),
        precision=precision,
        parity=parity,
        figures=_figures(validation, quantization),
        provenance=provenance,
        weights=WEIGHTS if WEIGHTS in files else None,
        files={},
    )
    sizes = {file: len(content) for file, content in files.items()}
    progress.stage("publishing")
    bundle = publish(repository, name, manifest, {**files, loaded.vocabulary_file: loaded.vocabulary.encode()})
    return Export(path, bundle, sizes, parity, quantization, no_prefill)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checkpoint's model, and what its task makes of it."""

    task: Task
    model: Network
    codec: TextCodec | InteractionCodec | CaptionCodec
    validation: type[LanguageValidation] | type[TracingValidation] | type[CaptioningValidation]
    limits: Limits = field(default_factory=Limits)
    decoding: DecodingDefaults = field(default_factory=DecodingDefaults)

    @property
    def vocabulary(self) -> str:
        """The codec's file."""
        return (self.codec.text if isinstance(self.codec, CaptionCodec) else self.codec).to_json()

    @property
    def vocabulary_file(self) -> str:
        """What it is called in a bundle."""
        return SKILLS if isinstance(self.codec, InteractionCodec) else TOKENIZER


def _fp32_graphs(
    path: Path, checkpoint: Checkpoint, loaded: _Loaded, encoder: Path | None
) -> tuple[dict[str, bytes], Parity]:
    """The ONNX files by name, and how near they are to the model."""
    model, codec = loaded.model, loaded.codec
    if isinstance(model, CaptioningModel):
        assert isinstance(codec, CaptionCodec)
        extractor = extractor_of(path, frozen_encoder(checkpoint), encoder)
        return captioning_graphs(model, codec.preprocessing, extractor)
    graph = export_step(model.step_module())
    return {STEP_GRAPH: graph}, measure_parity(model, graph)


def _int8_prefill(step: StepModule, graph: bytes) -> dict[str, bytes]:
    """The prefill graphs by name, which leave what the step graph leaves.

    Raises:
        ParityError: it does not.
    """
    prefill = build_int8_prefill(step)
    require_same_states(step, graph, prefill)
    return {prefill_name(place): part for place, part in enumerate(prefill)}


def _figures(
    served: LanguageValidation | TracingValidation | CaptioningValidation | None, quantization: Quantization | None
) -> Figures | None:
    if served is None:
        return None
    if quantization is None:
        return Figures(served=served.model_dump())
    return Figures(
        served=served.model_dump(),
        fp32=quantization.fp32.model_dump(),
        measure=quantization.measure,
        worsening=quantization.worsening,
        allowed_worsening=quantization.allowed,
    )


def _load(path: Path, checkpoint: Checkpoint) -> _Loaded:
    match checkpoint.header.get("task"):
        case "language":
            model, codec = load_language_model(checkpoint)
            if codec.vocabulary_size != model.config.vocabulary_size:
                raise CheckpointError(
                    f"{path}: the tokenizer has {codec.vocabulary_size:,} tokens; "
                    f"the model gives logits for {model.config.vocabulary_size:,}"
                )
            return _Loaded("language", model, codec, LanguageValidation)
        case "tracing":
            tracer, skills = load_tracing_model(checkpoint)
            if skills.skill_count != tracer.config.skill_count:
                raise CheckpointError(
                    f"{path}: the codec has {skills.skill_count:,} skills; "
                    f"the model gives probabilities for {tracer.config.skill_count:,}"
                )
            return _Loaded("tracing", tracer, skills, TracingValidation)
        case "captioning":
            captioner, image_codec = load_captioning_model(checkpoint)
            if image_codec.text.vocabulary_size != captioner.config.vocabulary_size:
                raise CheckpointError(
                    f"{path}: the tokenizer has {image_codec.text.vocabulary_size:,} tokens; "
                    f"the model gives logits for {captioner.config.vocabulary_size:,}"
                )
            header = checkpoint.header
            return _Loaded(
                "captioning",
                captioner,
                image_codec,
                CaptioningValidation,
                _validated(path, "", {"max_new_tokens": header.get("max_new_tokens")}, Limits),
                _validated(path, "decoding", {"temperature": 0.0, **(header.get("decoding") or {})}, DecodingDefaults),
            )
        case other:
            raise CheckpointError(f"{path}: checkpoint is of task {other!r}; allowed are {', '.join(STEP_INPUTS)}")


def _header_part(path: Path, header: Mapping[str, Any], key: str, part: type[Part]) -> Part | None:
    """A part of the manifest that training wrote into the checkpoint's header; None where it wrote none."""
    return None if header.get(key) is None else _validated(path, key, header[key], part)


def _validated(path: Path, key: str, value: object, part: type[Part]) -> Part:
    try:
        return part.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(filter(None, [key, *map(str, first["loc"])]))
        raise CheckpointError(f"{path}: header {where}: {first['msg']}") from None


def _filled(asked: Part, said: Part) -> Part:
    """What is asked for, and where nothing is, what the checkpoint says."""
    return said.model_copy(update=asked.model_dump(exclude_unset=True))
