"""The header of a checkpoint that is exported: which network its tensors are of, and what a bundle will say of it.

    format      2
    task        what the model is for
    network     {"kind": its name in NETWORKS, "config": what it is built from}
    codecs      by name, as a manifest says them
    ports       by port, the name of its codec
    head        what becomes of the outputs, as a manifest says it
    files       those of the codecs, by name, as text
    encoder     of which frozen encoder the network's features are; absent where of none
    limits, decoding, validation, provenance    as a manifest has them, where training says anything of them
    recipe      all sections

Headers before format 2 named a task, and its parts stood under names of their own; `current` turns them into this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.errors import CheckpointError

SAME = ("task", "provenance", "validation", "recipe", "decoding")
"""What format 1 called alike."""


def current(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """The header in format 2.

    Raises:
        CheckpointError: the format is of a later day, or a part is missing.
    """
    if header.get("format", 1) == 2:
        return header
    if "format" in header:
        raise CheckpointError(f"checkpoint is of format {header['format']!r}; allowed are 1 and 2")
    task = header.get("task")
    try:
        parts = _OF_FORMAT_1[str(task)](header)
        network = {"kind": task, "config": header["model"]}
    except KeyError as error:
        if str(task) not in _OF_FORMAT_1:
            allowed = ", ".join(_OF_FORMAT_1)
            raise CheckpointError(f"checkpoint is of task {task!r}; allowed are {allowed}") from None
        raise CheckpointError(f"checkpoint does not hold a whole {task} model: its header has no {error}") from None
    return {"format": 2, **{name: header[name] for name in SAME if name in header}, "network": network, **parts}


def _language(header: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "codecs": {"text": {"kind": "text"}},
        "ports": {"token": "text", "logits": "text"},
        "head": {"kind": "generate", "feeds": "token", "from": "logits"},
        "files": {"tokenizer.json": header["tokenizer"]},
    }


def _tracing(header: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "codecs": {"skills": {"kind": "interaction"}},
        "ports": dict.fromkeys(("skill", "correct", "probability"), "skills"),
        "head": {"kind": "read", "from": "probability"},
        "files": {"skills.json": header["skills"]},
    }


def _captioning(header: Mapping[str, Any]) -> dict[str, Any]:
    encoder, attends = header["encoder"], header["model"].get("attention", "soft") != "none"
    preprocessing = header["preprocessing"] if encoder is None else encoder["preprocessing"]
    head = {"kind": "generate", "feeds": "token", "from": "logits", "begin": header["begin"], "end": header["end"]}
    parts = {
        "codecs": {"image": {"kind": "image", "preprocessing": preprocessing}, "words": {"kind": "text"}},
        "ports": {"image": "image", "token": "words", "logits": "words"},
        "head": head | ({"attends": "attention"} if attends else {}),
        "files": {"tokenizer.json": header["tokenizer"]},
    }
    if "max_new_tokens" in header:
        parts["limits"] = {"max_new_tokens": header["max_new_tokens"]}
    parts["decoding"] = {"temperature": 0.0, **(header.get("decoding") or {})}
    return parts if encoder is None else {**parts, "encoder": encoder}


_OF_FORMAT_1 = {"language": _language, "tracing": _tracing, "captioning": _captioning}
"""The tasks that there were: this list does not grow."""
