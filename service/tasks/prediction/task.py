"""Networks of which nothing is known but their ports: what others made, adopted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.errors import BundleError
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import limits_of
from carousel.service.api.task import TASKS, ServedTask
from carousel.service.api.wire.examples import SESSION
from carousel.service.engine.runner import StepPorts
from carousel.service.served.ports import step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.prediction import routes


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    ports = step_ports(model.bundle)
    return {
        "limits": limits_of(model, beam=False),
        "inputs": _ports(ports, "inputs"),
        "context": _ports(ports, "context"),
        "outputs": _ports(ports, "outputs"),
    }


def _ports(ports: StepPorts, side: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(spec.shape), "dtype": spec.dtype} for name, spec in getattr(ports, side).items()
    ]


def _require(bundle: Bundle) -> None:
    """Rows are fed, and outputs are given as they are."""
    head = bundle.manifest.head
    if head.fed_port is not None or head.read_port is not None or bundle.encoder is not None:
        raise BundleError(
            f"{MANIFEST}: the head is not of tensors, or there is an encoder; of prediction it is what steps say"
        )


def _predict(model: ServedModel) -> Mapping[str, Any]:
    ports = step_ports(model.bundle)
    body: dict[str, Any] = {"session": SESSION, "each": True}
    if ports.inputs:
        body["inputs"] = {name: np.zeros((2, *spec.shape), spec.dtype).tolist() for name, spec in ports.inputs.items()}
    else:
        body["steps"] = 2
    if ports.context:
        body["context"] = {name: np.zeros(spec.shape, spec.dtype).tolist() for name, spec in ports.context.items()}
    return {"Two steps, in a session": body}


TASKS.register("prediction")(
    ServedTask(routers=(routes.router,), catalogue=_catalogue, require=_require, examples={"predict": _predict})
)
