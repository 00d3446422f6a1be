"""Networks of which nothing is known but their ports: what others made, adopted."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.errors import BundleError
from carousel.models.graph import TensorSpec
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import limits_of
from carousel.service.api.task import TASKS, ServedTask
from carousel.service.api.wire.examples import SESSION
from carousel.service.served.ports import step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.prediction import routes
from carousel.service.work.encoding import encoder_ports


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    bundle, ports = model.bundle, step_ports(model.bundle)
    outputs = bundle.step.outputs or (() if bundle.encoder is None else bundle.encoder.outputs)
    return {
        "limits": limits_of(model, beam=False),
        "inputs": _ports([*encoder_ports(model).values(), *bundle.step.inputs], {*ports.inputs, *encoder_ports(model)}),
        "context": _ports(bundle.context if bundle.encoder is None else [], ports.context),
        "outputs": _ports(outputs, bundle.manifest.head.outputs),
    }


def _ports(specs: Sequence[TensorSpec], names: Container[str]) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "shape": [size or -1 for size in spec.shape[1:]], "dtype": spec.dtype}
        for spec in specs
        if spec.name in names
    ]


def _require(bundle: Bundle) -> None:
    """Rows are fed, or ids, and outputs are given as they are."""
    head = bundle.manifest.head
    if head.read_port is not None and head.fed_port is None:
        raise BundleError(f"{MANIFEST}: the head reads an output; of prediction it gives outputs as they are")


def _predict(model: ServedModel) -> Mapping[str, Any]:
    ports = step_ports(model.bundle)
    whole = {
        name: np.zeros([size or 2 for size in spec.shape[1:]], spec.dtype).tolist()
        for name, spec in encoder_ports(model).items()
    }
    if not model.bundle.manifest.step.graph:
        return {"A whole input": {"inputs": whole}}
    body: dict[str, Any] = {"session": SESSION, "each": True}
    rows = {name: np.zeros((2, *spec.shape), spec.dtype).tolist() for name, spec in ports.inputs.items()}
    if ports.head.feeds is not None:
        rows = {ports.head.feeds: [0, 0]}
    if whole or rows:
        body["inputs"] = {**whole, **rows}
    if not rows:
        body["steps"] = 2
    if ports.context and not whole:
        body["context"] = {name: np.zeros(spec.shape, spec.dtype).tolist() for name, spec in ports.context.items()}
    return {"Two steps, in a session": body}


TASKS.register("prediction")(
    ServedTask(routers=(routes.router,), catalogue=_catalogue, require=_require, examples={"predict": _predict})
)
