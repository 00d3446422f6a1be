"""Bundles of format 2 made by hand, of models with several ports, as somebody with a framework of their own would."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from carousel.models.bundle import publish
from carousel.models.manifest import Manifest

FLOAT, DOUBLE, INT32, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64

Ports = Mapping[str, tuple[int, list[int | str]]]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """A node; inputs by name, blanks between."""
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def graph(
    nodes: list[NodeProto],
    inputs: Ports,
    outputs: Ports,
    weights: Mapping[str, npt.NDArray[Any]],
    batch: str | int = "batch",
) -> bytes:
    """An ONNX file; each port a type and the shape of a row. What it declares is not held against what it does."""
    told = [
        [helper.make_tensor_value_info(name, kind, [batch, *shape]) for name, (kind, shape) in ports.items()]
        for ports in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "step", *told, constants)
    opsets = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString())


def npy(row: npt.NDArray[Any]) -> bytes:
    """A stored row."""
    file = io.BytesIO()
    np.save(file, row)
    return file.getvalue()


VITALS_IN: Ports = {"vitals": (FLOAT, [3]), "ward": (FLOAT, [4]), "dose": (INT32, [])}
VITALS_STATES: Ports = {"h": (FLOAT, [5]), "taken": (INT64, [1])}
VITALS_OUT: Ports = {"risk": (FLOAT, [4]), "next": (FLOAT, [3]), "total": (INT64, [1])}
VITALS_AFTER: Ports = {"h1": (FLOAT, [5]), "taken1": (INT64, [1])}


def vitals_graph(outputs: Ports = VITALS_OUT, after: Ports = VITALS_AFTER) -> bytes:
    """h' = tanh([vitals, ward, h] A);  taken' = taken + dose;  risk = h' B, next = h' C, total = taken'"""
    random = np.random.default_rng(0)
    weights = {
        "A": random.standard_normal((12, 5)).astype(np.float32),
        "B": random.standard_normal((5, 4)).astype(np.float32),
        "C": random.standard_normal((5, 3)).astype(np.float32),
        "one": np.array([1]),
    }
    nodes = [
        node("Concat", "vitals ward h", "all", axis=1),
        node("MatMul", "all A", "sum"),
        node("Tanh", "sum", "h1"),
        node("MatMul", "h1 B", "risk"),
        node("MatMul", "h1 C", "next"),
        node("Cast", "dose", "wide", to=INT64),
        node("Unsqueeze", "wide one", "column"),
        node("Add", "taken column", "taken1"),
        node("Identity", "taken1", "total"),
    ]
    return graph(nodes, {**VITALS_IN, **VITALS_STATES}, {**outputs, **after}, weights)


VITALS: dict[str, Any] = {
    "format": 2,
    "task": "vitals",
    "step": {
        "graph": "step.onnx",
        "inputs": ["vitals", "ward", "dose"],
        "outputs": ["risk", "next", "total"],
        "states": [
            {"in": "h", "out": "h1", "initial": "zeros"},
            {"in": "taken", "out": "taken1", "initial": {"file": "taken.npy"}},
        ],
    },
    "ports": {"vitals": "vitals", "ward": "wards", "risk": "risks", "next": "vitals"},
    "codecs": {
        "vitals": {"kind": "numbers", "file": "vitals.json"},
        "wards": {"kind": "labels", "file": "wards.json"},
        "risks": {"kind": "labels", "file": "risks.json"},
    },
    "head": {"kind": "tensors", "from": ["risk", "next", "total"]},
}
VITALS_FILES: dict[str, bytes] = {
    "step.onnx": vitals_graph(),
    "taken.npy": npy(np.array([7])),
    "vitals.json": json.dumps(
        {"names": ["pulse", "fever", "lead"], "mean": [70, 37, 0], "deviation": [9, 1, 2]}
    ).encode(),
    "wards.json": b'["east", "west", "north", "south"]',
    "risks.json": b'["none", "low", "high", "grave"]',
}


def publish_vitals(
    repository: Path, manifest: Mapping[str, Any] = VITALS, files: Mapping[str, bytes] = VITALS_FILES
) -> Path:
    """A bundle of these, opened once as publishing does."""
    return publish(repository, "vitals", Manifest.model_validate({**manifest, "files": {}}), files)


def changed(**fields: Any) -> dict[str, Any]:
    """The manifest of vitals with parts of it otherwise: `step__inputs` is the step's inputs; None takes a part out."""
    told = copy.deepcopy(VITALS)
    for path, value in fields.items():
        *within, last = path.split("__")
        part = told
        for name in within:
            part = part[name]
        if value is None:
            del part[last]
        else:
            part[last] = value
    return told


def wards_graph() -> bytes:
    """A language of wards: the ward one-hot in float32, h' = tanh([ward, h] A), logits = h' B."""
    random = np.random.default_rng(1)
    weights = {
        "A": random.standard_normal((9, 5)).astype(np.float32),
        "B": 3 * random.standard_normal((5, 4)).astype(np.float32),
    }
    nodes = [
        node("Concat", "ward h", "all", axis=1),
        node("MatMul", "all A", "sum"),
        node("Tanh", "sum", "h1"),
        node("MatMul", "h1 B", "logits"),
    ]
    return graph(
        nodes,
        {"ward": (FLOAT, [4]), "h": (FLOAT, [5])},
        {"logits": (FLOAT, [4]), "h1": (FLOAT, [5])},
        weights,
    )


WARDS: dict[str, Any] = {
    "format": 2,
    "task": "wards",
    "step": {
        "graph": "step.onnx",
        "inputs": ["ward"],
        "outputs": ["logits"],
        "states": [{"in": "h", "out": "h1", "initial": {"file": "h.npy"}}],
    },
    "ports": {"ward": "wards", "logits": "wards"},
    "codecs": {"wards": {"kind": "labels", "file": "wards.json"}},
    "head": {"kind": "generate", "feeds": "ward", "from": "logits", "begin": "east", "end": "south"},
}
WARDS_FILES: dict[str, bytes] = {
    "step.onnx": wards_graph(),
    "h.npy": npy(np.linspace(-1, 1, 5).astype(np.float32)),
    "wards.json": VITALS_FILES["wards.json"],
}
