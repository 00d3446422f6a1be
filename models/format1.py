"""Manifests of format 1, as users hold them, told in format 2.

Format 1 knew three tasks, each with one codec and fixed names of ports; the graph itself said by `state.` and `memory.`
what was a state and what a step reads only. Nothing is written back: the digest stays that of the manifest's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from carousel.models.graph import GraphSpec

STEP, ENCODER = "step.onnx", "encoder.onnx"
STATE, NEXT, CONTEXT = "state.", "next_state.", "memory."
ATTENTION = "attention"

INPUTS = {"language": ["token"], "tracing": ["skill", "correct"], "captioning": ["token"]}
OUTPUT = {"language": "logits", "tracing": "probability", "captioning": "logits"}
CODEC = {"language": "text", "tracing": "interaction", "captioning": "image"}
"""By task, as format 1 had them."""

SAME = ("limits", "decoding", "precision", "parity", "provenance", "weights")
"""Fields that are what they were."""

FIELDS = {"format", "task", "codec", "validation", "quantization", "files", *SAME}


def in_format_2(manifest: Mapping[str, Any], graph: Callable[[str], GraphSpec]) -> dict[str, Any]:
    """A manifest of format 1 in format 2.

    Args:
        manifest: as its JSON has it.
        graph: the inputs and outputs of one of its graphs.

    Raises:
        ValueError: it is none; with the field that is wrong.
        BundleError: as `graph` raises it.
    """
    if unknown := manifest.keys() - FIELDS:
        raise ValueError(f"{min(unknown)}: Extra inputs are not permitted")
    task, files = manifest.get("task"), manifest.get("files")
    if task not in INPUTS:
        raise ValueError(f"task: is {task!r}; allowed are {', '.join(INPUTS)}")
    if not isinstance(files, dict):
        raise ValueError("files: Field required")
    codec = manifest.get("codec")
    if not isinstance(codec, dict):
        raise ValueError("codec: Field required")
    codecs, ports, begin_and_end = _codecs(task, codec)
    captioning = task == "captioning"
    for required in (STEP, *([ENCODER] if captioning else [])):
        if required not in files:
            raise ValueError(f"files lists no {required}, which a {task} bundle must have")
    step = graph(STEP)
    states = [spec.name for spec in step.inputs if spec.name.startswith(STATE)]
    context = [spec.name for spec in step.inputs if spec.name.startswith(CONTEXT)] if captioning else []
    attends = captioning and step.output(ATTENTION) is not None
    told: dict[str, Any] = {
        "format": 2,
        "task": task,
        "step": {
            "graph": STEP,
            "inputs": INPUTS[task],
            "outputs": [OUTPUT[task], *([ATTENTION] if attends else [])],
            "states": [
                {"in": name, "out": NEXT + name.removeprefix(STATE), "initial": "encoder" if captioning else "zeros"}
                for name in states
            ],
            "context": context,
        },
        "prefill": _prefill(files),
        "ports": ports,
        "codecs": codecs,
        "head": {"kind": "read", "from": OUTPUT[task]}
        if task == "tracing"
        else {
            "kind": "generate",
            "feeds": "token",
            "from": OUTPUT[task],
            **begin_and_end,
            **({"attends": ATTENTION} if attends else {}),
        },
        "figures": _figures(manifest.get("validation"), manifest.get("quantization")),
        "files": files,
        **{field: manifest[field] for field in SAME if field in manifest},
    }
    if captioning:
        told["encoder"] = {"graph": ENCODER, "inputs": ["image"], "gives": [*states, *context]}
    return told


def _codecs(task: str, codec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """The codecs by name, the codec's name by port, and the tokens that begin and end."""
    kind = codec.get("kind", "text")
    if kind != CODEC[task]:
        raise ValueError(f"codec is of kind {kind!r}, which is not that of task {task!r}")
    rest = {key: value for key, value in codec.items() if key != "kind"}
    if task == "tracing":
        told = {"kind": "interaction", **_renamed(rest, "skills")}
        return {"skills": told}, dict.fromkeys(("skill", "correct", "probability"), "skills"), {}
    if task == "language":
        return {"text": {"kind": "text", **_renamed(rest, "tokenizer")}}, dict.fromkeys(("token", "logits"), "text"), {}
    for field in ("begin", "end"):
        if not isinstance(rest.get(field), str):
            raise ValueError(f"codec.{field}: a string is required")
    ends = {field: rest.pop(field) for field in ("begin", "end")}
    image = {"kind": "image", "preprocessing": rest.pop("preprocessing", None)}
    words = {"kind": "text", **_renamed(rest, "tokenizer")}
    return {"image": image, "words": words}, {"image": "image", "token": "words", "logits": "words"}, ends


def _renamed(codec: dict[str, Any], field: str) -> dict[str, Any]:
    """With `file` for the field that format 1 called otherwise; what is left is refused where it is not known."""
    codec = dict(codec)
    return {"file": codec.pop(field), **codec} if field in codec else codec


def _prefill(files: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for place in count(1):
        name = "prefill.onnx" if place == 1 else f"prefill{place}.onnx"
        if name not in files:
            break
        names.append(name)
    return names


def _figures(validation: Any, quantization: Any) -> dict[str, Any] | None:
    if validation is None and quantization is None:
        return None
    if quantization is None:
        return {"served": validation}
    if not isinstance(quantization, dict):
        raise ValueError("quantization: an object is required")
    told = dict(quantization)
    if "allowed" in told:
        told["allowed_worsening"] = told.pop("allowed")
    return {"served": validation, **told}
