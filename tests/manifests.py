"""Manifests of bundles that tests make by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carousel.models.format1 import in_format_2
from carousel.models.graph import CONTEXT_PREFIX, GraphSpec, read_graph
from carousel.models.manifest import MANIFEST, Manifest
from carousel.models.signature import check_prefill, check_step
from carousel.models.weights import WeightsFile

GRAPHS = ("step.onnx", "encoder.onnx")
CODEC: dict[str, dict[str, Any]] = {
    "language": {"kind": "text"},
    "tracing": {"kind": "interaction"},
    "captioning": {
        "kind": "image",
        "preprocessing": {"width": 1, "height": 1},
        "begin": "<s>",
        "end": "</s>",
    },
}
KIND = {"language": "text", "tracing": "interaction", "captioning": "image"}


def format_1(task: str, files: Mapping[str, bytes], **fields: Any) -> dict[str, Any]:
    """A manifest of format 1 of these files."""
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    return {"format": 1, "task": task, "codec": {"kind": KIND[task]}, "files": entries, **fields}


def manifest_of(task: str, files: Mapping[str, bytes], **fields: Any) -> Manifest:
    """The manifest, in format 2, of files that keep what format 1 asked of a task."""
    shared = fields.get("weights")
    weights = WeightsFile(shared, len(files[shared])) if shared else None
    told = in_format_2(format_1(task, files, **fields), lambda name: read_graph(files[name], name, weights))
    return Manifest.model_validate({**told, "files": {}})


def write_format_1(path: Path, task: str, files: Mapping[str, bytes], **fields: Any) -> Path:
    """A bundle of format 1, as users hold them, in a directory."""
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / MANIFEST).write_text(json.dumps(format_1(task, files, **fields)))
    return path


def output_size_of(task: str, graph: GraphSpec) -> int:
    """How many numbers a step graph of a task says, which keeps the contract."""
    said = {**format_1(task, {}, codec=CODEC[task]), "files": dict.fromkeys(GRAPHS)}
    told = in_format_2(said, lambda _: graph)
    told["step"]["context"] = [spec.name for spec in graph.inputs if spec.name.startswith(CONTEXT_PREFIX)]
    manifest = Manifest.model_validate({**told, "files": {}})
    check_step(graph, manifest.step)
    spec = graph.output(manifest.head.outputs[0])
    assert spec is not None
    return spec.shape[-1] or 0


def check_prefill_of(task: str, step: bytes, prefill: Sequence[bytes]) -> None:
    """Hold prefill graphs against a step graph of a task."""
    files = {
        "step.onnx": step,
        **{f"prefill{place + 1 if place else ''}.onnx": part for place, part in enumerate(prefill)},
    }
    manifest = manifest_of(task, files)
    graphs = [read_graph(files[name], name) for name in manifest.prefill]
    check_prefill(graphs, manifest, read_graph(step, "step.onnx"))
