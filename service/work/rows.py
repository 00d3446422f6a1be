"""Rows of ports as JSON has them, as arrays, and back: for whoever is asked in terms of a model's ports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carousel.models.graph import TensorSpec
from carousel.service.engine.encoder.together import Ragged
from carousel.service.engine.feed import as_port
from carousel.service.engine.parameters import Array
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError
from carousel.service.served.ports import row_spec
from carousel.service.served.repository import ServedModel

PIECE = 4096
"""Rows that are made an array, or lists, at a time: another thread has the interpreter's lock in between."""

Rows = Sequence[Any] | Array
"""Of a port: as JSON has them, or an array of them."""

NO_STEPS = "steps: the model has inputs, and takes as many steps as they have rows"


def asked_outputs(model: ServedModel, asked: Sequence[str] | None, where: str = "") -> tuple[str, ...]:
    """The names that were asked for, each once; all where nothing was."""
    known = model.bundle.manifest.head.outputs
    for place, name in enumerate(asked or ()):
        if name not in known:
            raise RequestError(
                "invalid_request",
                f"{where}outputs.{place}: there is no output {name[:100]!r}; outputs are {', '.join(known)}",
            )
    return known if asked is None else tuple(dict.fromkeys(asked))


def encoder_ports(model: ServedModel) -> dict[str, TensorSpec]:
    """What the encoder is fed, by name; nothing where there is none, or where it takes images."""
    declared, graph, encoder = model.bundle.manifest.encoder, model.bundle.encoder, model.encoder
    if declared is None or graph is None or encoder is None or not isinstance(encoder.together, Ragged):
        return {}
    return {spec.name: spec for spec in graph.inputs if spec.name in declared.inputs}


def context_ports(model: ServedModel) -> dict[str, StateSpec]:
    """What each step reads, and no encoder gives of what a client sends."""
    encoder = model.bundle.manifest.encoder
    made = () if encoder is None or not encoder_ports(model) else encoder.gives
    return {spec.name: row_spec(spec) for spec in model.bundle.context if spec.name not in made}


def context_rows(model: ServedModel, given: Mapping[str, Any], where: str = "") -> Mapping[str, Array] | None:
    """One row of each of those ports; None where there is none."""
    specs = context_ports(model)
    names = ", ".join(specs) or "none"
    rows = {}
    for name in [*given, *specs]:
        if name not in specs:
            raise RequestError("invalid_request", f"{where}context: there is no port {name[:100]!r}; ports are {names}")
        if name not in given:
            raise RequestError("invalid_request", f"{where}context: port {name!r} is missing; ports are {names}")
        try:
            row = array_of(name, [given[name]], specs[name])[0]
            if row.shape != specs[name].shape:
                raise ValueError(f"input {name!r} is {list(row.shape)}; allowed is {list(specs[name].shape)}")
            rows[name] = as_port(name, row, specs[name].dtype)
        except ValueError as error:
            raise RequestError("invalid_request", f"{where}context: {error}") from None
    return rows or None


def array_of(name: str, rows: Rows, spec: StateSpec | None) -> Array:
    """Rows as an array of their own type.

    Raises:
        ValueError: they are no rows of that port.
    """
    if spec is None or not len(rows):
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


def as_json(head: Mapping[str, Any], outputs: Mapping[str, Array]) -> bytes:
    """An object with `outputs`, each a row or rows."""
    told = (f"{dumps(name)}:{json_of(rows)}" for name, rows in outputs.items())
    return f'{dumps(head)[:-1]},"outputs":{{{",".join(told)}}}}}'.encode()


def json_of(rows: Array) -> str:
    """Rows, or a number."""
    if not rows.ndim:
        return dumps(rows.tolist())
    pieces = (dumps(rows[start : start + PIECE].tolist())[1:-1] for start in range(0, len(rows), PIECE))
    return f"[{','.join(pieces)}]"


def dumps(value: Any) -> str:
    """In the fewest characters."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
