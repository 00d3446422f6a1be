"""Rows of JSON as arrays, and arrays as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.states.pool import StateSpec

PIECE = 4096
"""Rows that are made an array, or lists, at a time: another thread has the interpreter's lock in between."""


def array_of(name: str, rows: list[Any], spec: StateSpec | None) -> Array:
    """Rows of JSON as an array of their own type.

    Raises:
        ValueError: they are no rows of that port.
    """
    if spec is None or not rows:
        return np.zeros((len(rows), *(() if spec is None else spec.shape)))
    pieces = []
    for start in range(0, len(rows), PIECE):
        try:
            piece = np.asarray(rows[start : start + PIECE])
        except ValueError:
            raise ValueError(f"input {name!r} has rows of unequal lengths; a row is {list(spec.shape)}") from None
        if piece.dtype.kind not in "biuf":
            raise ValueError(f"input {name!r} holds what is no number; a row is {spec.dtype}{list(spec.shape)}")
        if piece.shape[1:] != spec.shape:
            raise ValueError(f"input {name!r} has rows {list(piece.shape[1:])}; allowed is {list(spec.shape)}")
        if (piece.dtype.kind == "b") != (spec.dtype == "bool"):
            raise ValueError(f"input {name!r} is {piece.dtype}; allowed is {spec.dtype}")
        pieces.append(piece)
    return np.concatenate(pieces)


def ids_of(name: str, given: Array, count: int) -> Ids:
    """Rows of a port that takes ids below `count`. <int64>[N]

    Raises:
        ValueError: one is none of them.
    """
    ids: Ids = given.astype(np.int64)
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
        raise ValueError(f"input {name!r} holds {wrong[0]}; allowed are ids from 0 to {count - 1:,}")
    return ids


def as_json(head: Mapping[str, Any], outputs: Mapping[str, Array]) -> bytes:
    """A PredictResponse: each output a row, or rows."""
    told = []
    for name, rows in outputs.items():
        if rows.ndim:
            pieces = (dumps(rows[start : start + PIECE].tolist())[1:-1] for start in range(0, len(rows), PIECE))
            told.append(f"{dumps(name)}:[{','.join(pieces)}]")
        else:
            told.append(f"{dumps(name)}:{dumps(rows.tolist())}")
    return f'{dumps(head)[:-1]},"outputs":{{{",".join(told)}}}}}'.encode()


def dumps(value: Any) -> str:
    """In the fewest characters."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
