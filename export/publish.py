"""From a checkpoint to a published bundle: load, export, prove, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from export.onnx_graph import export_step
from export.parity import measure_parity
from export.step_module import StepModule
from models.bundle import (
    STEP_GRAPH,
    DecodingDefaults,
    Limits,
    Manifest,
    Parity,
    Provenance,
    TextCodecSpec,
    Validation,
    publish,
)
from models.errors import CheckpointError
from models.nn.checkpoint import load_language_model, read_checkpoint

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
    model, codec = load_language_model(checkpoint)
    if codec.vocabulary_size != model.config.vocabulary_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {codec.vocabulary_size:,} tokens; "
            f"the model gives logits for {model.config.vocabulary_size:,}"
        )
    graph = export_step(StepModule(model))
    codec_spec = TextCodecSpec()
    manifest = Manifest(
        task="language",
        codec=codec_spec,
        limits=limits or Limits(),
        decoding=decoding or DecodingDefaults(),
        parity=measure_parity(model, graph),
        validation=_header_part(path, checkpoint.header, "validation", Validation),
        provenance=_header_part(path, checkpoint.header, "provenance", Provenance),
        files={},
    )
    files = {STEP_GRAPH: graph, codec_spec.tokenizer: codec.to_json().encode()}
    bundle = publish(repository, name, manifest, files)
    assert manifest.parity is not None
    return Export(path, bundle, len(graph), manifest.parity)


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
