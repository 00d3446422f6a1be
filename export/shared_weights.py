"""Weights that several graphs of a bundle have, written once: into a file beside them (models/weights.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from carousel.models.weights import WEIGHTS

MIN_BYTES = 4096
"""Smaller ones stay where they are."""

ALIGNMENT = 64
"""Bytes: of a cache line, and of the widest vector."""

Constant = tuple[str, int, tuple[int, ...], bytes]
"""Name, element type, shape and data: what is alike in all of them is the same weight."""


def share_weights(graphs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same graphs, with what several of them hold moved into one more file, WEIGHTS, if there is anything.

    Args:
        graphs: ONNX models by file name, whose constants lie in them.
    """
    models = {name: onnx.load_from_string(content) for name, content in graphs.items()}
    holders = Counter(key for model in models.values() for key in {_key(each) for each in model.graph.initializer})
    shared, places = bytearray(), dict[Constant, int]()
    for model in models.values():
        for tensor in model.graph.initializer:
            key = _key(tensor)
            if holders[key] < 2 or len(tensor.raw_data) < MIN_BYTES:
                continue
            if key not in places:
                shared.extend(bytes(-len(shared) % ALIGNMENT))
                places[key] = len(shared)
                shared.extend(tensor.raw_data)
            _point(tensor, places[key])
    if not shared:
        return dict(graphs)
    files = {name: bytes(model.SerializeToString(deterministic=True)) for name, model in models.items()}
    return files | {WEIGHTS: bytes(shared)}


def _key(tensor: TensorProto) -> Constant:
    return tensor.name, tensor.data_type, tuple(tensor.dims), tensor.raw_data


def _point(tensor: TensorProto, offset: int) -> None:
    entries = {"location": WEIGHTS, "offset": offset, "length": len(tensor.raw_data)}
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
