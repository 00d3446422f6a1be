"""From a checkpoint to a published bundle: load, export, prove, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from export.onnx_graph import export_step
from export.parity import measure_parity
from export.step_module import Model, step_module
from models.bundle import (
    STEP_GRAPH,
    DecodingDefaults,
    InteractionCodecSpec,
    LanguageValidation,
    Limits,
    Manifest,
    Parity,
    Provenance,
    TextCodecSpec,
    TracingValidation,
    publish,
)
from models.codec.interaction import InteractionCodec
from models.codec.text import TextCodec
from models.errors import CheckpointError
from models.nn.checkpoint import Checkpoint, load_language_model, load_tracing_model, read_checkpoint
from models.step import STEP_INPUTS, Task

BEST = "best.safetensors"
"""The checkpoint of a run directory that is exported."""

Part = TypeVar("Part", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Export:
    """What one export did."""

    checkpoint: Path
    bundle: Path
    graph_bytes: int
    parity: Parity


def export_checkpoint(
    path: Path,
    repository: Path,
    name: str,
    *,
    limits: Limits | None = None,
    decoding: DecodingDefaults | None = None,
) -> Export:
    """Publish the model of a checkpoint as the next version of `name`.

    Args:
        path: a checkpoint file, or a run directory (its best checkpoint is taken).
        repository: the model repository, made where there is none.
        name: the model's name in it.
        limits: what a request may ask; the contract's own where None.
        decoding: sampling parameters of a request that names none; the contract's own where None.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ParityError: the graph is not the model.
        BundleError: the name is not allowed.
    """
    if path.is_dir():
        path = path / BEST
    checkpoint = read_checkpoint(path)
    loaded = _load(path, checkpoint)
    graph = export_step(step_module(loaded.model))
    manifest = Manifest(
        task=loaded.task,
        codec=loaded.codec_spec,
        limits=limits or Limits(),
        decoding=decoding or DecodingDefaults(),
        parity=measure_parity(loaded.model, graph),
        validation=_header_part(path, checkpoint.header, "validation", loaded.validation),
        provenance=_header_part(path, checkpoint.header, "provenance", Provenance),
        files={},
    )
    files = {STEP_GRAPH: graph, loaded.codec_spec.file: loaded.codec.to_json().encode()}
    bundle = publish(repository, name, manifest, files)
    assert manifest.parity is not None
    return Export(path, bundle, len(graph), manifest.parity)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checkpoint's model, and what its task makes of it."""

    task: Task
    model: Model
    codec: TextCodec | InteractionCodec
    codec_spec: TextCodecSpec | InteractionCodecSpec
    validation: type[LanguageValidation] | type[TracingValidation]


def _load(path: Path, checkpoint: Checkpoint) -> _Loaded:
    match checkpoint.header.get("task"):
        case "language":
            model, codec = load_language_model(checkpoint)
            if codec.vocabulary_size != model.config.vocabulary_size:
                raise CheckpointError(
                    f"{path}: the tokenizer has {codec.vocabulary_size:,} tokens; "
                    f"the model gives logits for {model.config.vocabulary_size:,}"
                )
            return _Loaded("language", model, codec, TextCodecSpec(), LanguageValidation)
        case "tracing":
            tracer, skills = load_tracing_model(checkpoint)
            if skills.skill_count != tracer.config.skill_count:
                raise CheckpointError(
                    f"{path}: the codec has {skills.skill_count:,} skills; "
                    f"the model gives probabilities for {tracer.config.skill_count:,}"
                )
            return _Loaded("tracing", tracer, skills, InteractionCodecSpec(), TracingValidation)
        case other:
            raise CheckpointError(f"{path}: checkpoint is of task {other!r}; allowed are {', '.join(STEP_INPUTS)}")


def _header_part(path: Path, header: Mapping[str, Any], key: str, part: type[Part]) -> Part | None:
    """A part of the manifest that training wrote into the checkpoint's header; None where it wrote none."""
    if header.get(key) is None:
        return None
    try:
        return part.model_validate(header[key])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *map(str, first["loc"])])
        raise CheckpointError(f"{path}: header {where}: {first['msg']}") from None
