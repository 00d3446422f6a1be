"""Networks of which nothing is known but their ports: what others made, adopted."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from carousel.models.bundle import Bundle
from carousel.models.errors import BundleError
from carousel.models.graph import TensorSpec
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import limits_of
from carousel.service.api.task import TASKS, ServedTask
from carousel.service.served.ports import step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.prediction.command import RUN
from carousel.service.work.rows import encoder_ports


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


TASKS.register("prediction")(ServedTask(routers=(), catalogue=_catalogue, require=_require, commands={"run": RUN}))
