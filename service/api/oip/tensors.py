"""Tensors as the Open Inference Protocol sends them: JSON, and Triton's bytes behind it.

A body is JSON, then the bytes of the tensors that say so, in the JSON's order; a header says where the JSON ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carousel.service.api.oip.datatypes import DTYPES, NAMES
from carousel.service.api.oip.messages import InferInput, TensorMetadata
from carousel.service.engine.parameters import Array
from carousel.service.errors import RequestError
from carousel.service.work.rows import PIECE, dumps

JSON_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON."""


def refuse(message: str) -> RequestError:
    """The refusal of a request that is not the protocol's, or not the model's."""
    return RequestError("invalid_request", message)


def read_tensors(inputs: Sequence[InferInput], behind: bytes, ports: Mapping[str, TensorMetadata]) -> dict[str, Array]:
    """What is sent to each port. [B, ...] each

    Args:
        inputs: of the JSON.
        behind: the bytes that follow it.
        ports: that there are, by name; the first of a shape is any.

    Raises:
        RequestError: invalid_request.
    """
    tensors: dict[str, Array] = {}
    at = 0
    for sent in inputs:
        port = ports.get(sent.name)
        if port is None:
            raise refuse(f"there is no input {sent.name[:100]!r}; inputs are {', '.join(ports) or 'none'}")
        if sent.name in tensors:
            raise refuse(f"input {sent.name!r} comes twice")
        if sent.datatype != port.datatype:
            raise refuse(f"input {sent.name!r} is {sent.datatype[:20]}; allowed is {port.datatype}")
        if len(sent.shape) != len(port.shape) or any(
            allowed not in (-1, size) for size, allowed in zip(sent.shape, port.shape, strict=True)
        ):
            raise refuse(f"input {sent.name!r} is {sent.shape}; allowed is {port.shape}, -1 being any number")
        size = sent.parameters.binary_data_size
        if (size is None) == (sent.data is None):
            raise refuse(f"input {sent.name!r} needs either data or the parameter binary_data_size")
        if size is None:
            tensors[sent.name] = _of_json(sent)
        else:
            tensors[sent.name] = _of_bytes(sent, behind[at : at + size], size)
            at += size
    if at != len(behind):
        raise refuse(f"{len(behind):,} bytes lie behind the JSON; its tensors have {at:,} (binary_data_size)")
    missing = [name for name in ports if name not in tensors]
    if missing:
        raise refuse(f"input {missing[0]!r} is missing; inputs are {', '.join(ports)}")
    return tensors


def read_raw(body: bytes, ports: Mapping[str, TensorMetadata]) -> dict[str, Array]:
    """What a body without JSON is: one row of the only port, as bytes.

    Raises:
        RequestError: invalid_request.
    """
    if len(ports) != 1:
        raise refuse(f"a body without JSON is one input's; this model has {len(ports)}: {', '.join(ports) or 'none'}")
    (port,) = ports.values()
    if -1 in port.shape[1:]:
        raise refuse(f"input {port.name!r} is {port.shape}: a body without JSON does not say its sizes")
    sent = InferInput(name=port.name, datatype=port.datatype, shape=[1, *port.shape[1:]])
    return {port.name: _of_bytes(sent, body, len(body))}


def _of_bytes(sent: InferInput, content: bytes, size: int) -> Array:
    dtype, count = DTYPES[sent.datatype], math.prod(sent.shape)
    if size != count * dtype.itemsize or len(content) != size:
        raise refuse(
            f"input {sent.name!r}, {sent.datatype} {sent.shape}, has {len(content):,} bytes"
            f"{f' of the {size:,} that it says' * (size != len(content))}; it should have {count * dtype.itemsize:,}"
        )
    array = np.frombuffer(content, dtype).reshape(sent.shape)
    if dtype.kind == "b" and (np.frombuffer(content, np.uint8) > 1).any():
        raise refuse(f"input {sent.name!r} is BOOL, of bytes that are 0 or 1; one is neither")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _of_json(sent: InferInput) -> Array:
    dtype, count = DTYPES[sent.datatype], math.prod(sent.shape)
    if sent.datatype == "FP16":
        raise refuse(f"input {sent.name!r} is FP16, which JSON has not; send it as bytes (binary_data_size)")
    given = sent.data or []
    try:
        array = np.concatenate([np.asarray(given[at : at + PIECE]) for at in range(0, max(1, len(given)), PIECE)])
    except ValueError:
        raise refuse(f"input {sent.name!r} has lists of unequal lengths; its shape is {sent.shape}") from None
    if array.size != count or (array.ndim > 1 and list(array.shape) != sent.shape):
        raise refuse(f"input {sent.name!r} has data of shape {list(array.shape)}; its shape is {sent.shape}")
    if (count and array.dtype.kind not in "biuf") or (array.dtype.kind == "b") != (dtype.kind == "b" and count > 0):
        raise refuse(f"input {sent.name!r} is {sent.datatype}; its data holds something else")
    return array.reshape(sent.shape)


def write_tensors(
    head: Mapping[str, Any], outputs: Mapping[str, Array], binary: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON; None where all are.

    Args:
        head: what the JSON says beside its outputs.
        outputs: by name. [B, ...] each
        binary: which of them go behind it.

    Raises:
        RequestError: invalid_request, of FP16 that JSON was asked for.
    """
    told: list[str] = []
    behind: list[bytes] = []
    for name, array in outputs.items():
        datatype = NAMES[str(array.dtype)]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary[name]:
            content = np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            behind.append(content)
        elif datatype == "FP16":
            raise refuse(f"output {name!r} is FP16, which JSON has not; ask for it as bytes (binary_data)")
        else:
            flat = array.reshape(-1)
            pieces = (dumps(flat[at : at + PIECE].tolist())[1:-1] for at in range(0, len(flat), PIECE))
            told.append(f'{dumps(entry)[:-1]},"data":[{",".join(pieces)}]}}')
            continue
        told.append(dumps(entry))
    text = f'{dumps(head)[:-1]},"outputs":[{",".join(told)}]}}'.encode()
    return b"".join([text, *behind]), len(text) if behind else None
