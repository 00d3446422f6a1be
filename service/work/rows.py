"""Rows of ports as JSON has them, as arrays, and back: for whoever is asked in terms of a model's ports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from carousel.service.engine.feed import as_port
from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError
from carousel.service.served.ports import row_spec
from carousel.service.served.repository import ServedModel

PIECE = 4096
"""Rows that are made an array, or lists, at a time: another thread has the interpreter's lock in between."""

NO_STEPS = "steps: the model has inputs, and takes as many steps as they have rows"


def asked_outputs(model: ServedModel, asked: list[str] | None) -> tuple[str, ...]:
    """The names that were asked for, each once; all where nothing was."""
    known = model.bundle.manifest.head.outputs
    for place, name in enumerate(asked or ()):
        if name not in known:
            raise RequestError(
                "invalid_request", f"outputs.{place}: there is no output {name[:100]!r}; outputs are {', '.join(known)}"
            )
    return known if asked is None else tuple(dict.fromkeys(asked))


def context_rows(model: ServedModel, given: Mapping[str, Any]) -> Mapping[str, Array] | None:
    """One row of each part of the context that no encoder gives; None where there is none."""
    encoder = model.bundle.manifest.encoder
    made = () if encoder is None else encoder.gives
    specs = {spec.name: row_spec(spec) for spec in model.bundle.context if spec.name not in made}
    names = ", ".join(specs) or "none"
    rows = {}
    for name in [*given, *specs]:
        if name not in specs:
            raise RequestError("invalid_request", f"context: there is no port {name[:100]!r}; ports are {names}")
        if name not in given:
            raise RequestError("invalid_request", f"context: port {name!r} is missing; ports are {names}")
        try:
            row = array_of(name, [given[name]], specs[name])[0]
            if row.shape != specs[name].shape:
                raise ValueError(f"input {name!r} is {list(row.shape)}; allowed is {list(specs[name].shape)}")
            rows[name] = as_port(name, row, specs[name].dtype)
        except ValueError as error:
            raise RequestError("invalid_request", f"context: {error}") from None
    return rows or None


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
    """An object with `outputs`, each a row or rows."""
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
