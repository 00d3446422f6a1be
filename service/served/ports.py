"""From a bundle to what the engine is told of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.codec.spec import Array, IdCodec, Ids
from carousel.models.graph import TensorSpec
from carousel.service.engine.runner import HeadPorts, StepPorts
from carousel.service.engine.states.pool import StateSpec


def step_ports(bundle: Bundle) -> StepPorts:
    """What the step graph of a bundle takes and gives."""
    declared, head = bundle.manifest.step, bundle.manifest.head
    return StepPorts(
        inputs={spec.name: row_spec(spec) for spec in bundle.step.inputs if spec.name in declared.inputs},
        outputs={spec.name: row_spec(spec) for spec in bundle.step.outputs if spec.name in head.outputs},
        states={spec.name: row_spec(spec) for spec in bundle.states},
        after={state.before: state.after for state in declared.states},
        context={spec.name: row_spec(spec) for spec in bundle.context},
        head=HeadPorts(head.fed_port or next(iter(declared.inputs)), head.outputs[0], head.attends_port),
    )


def row_spec(tensor: TensorSpec) -> StateSpec:
    """One row of a tensor whose sizes are fixed but for the batch's."""
    return StateSpec(tuple(size or 0 for size in tensor.shape[1:]), tensor.dtype)


def id_codec(bundle: Bundle) -> IdCodec | None:
    """The codec whose ids a step is fed; None where it is fed what has no ids."""
    named = {bundle.manifest.ports.get(name) for name in bundle.manifest.step.inputs}
    codec = bundle.codecs.get(next(iter(named)) or "") if len(named) == 1 else None
    return codec if isinstance(codec, IdCodec) else None


def takes_ids(bundle: Bundle) -> bool:
    """Whether a step takes ids as they are: one port of int64, a number a row."""
    inputs = [bundle.step.input(name) for name in bundle.manifest.step.inputs]
    return len(inputs) == 1 and inputs[0] is not None and (inputs[0].dtype, inputs[0].shape) == ("int64", (None,))


def id_feed(bundle: Bundle) -> Callable[[Ids], Mapping[str, Array]]:
    """What prefill graphs are fed of the ids <int64>[b, T] of some rows."""
    rows = step_ports(bundle).inputs
    codec = id_codec(bundle)

    def feed(ids: Ids) -> Mapping[str, Array]:
        if codec is None or takes_ids(bundle):
            return {name: np.ascontiguousarray(ids) for name in rows}
        fed: dict[str, Array] = {name: np.zeros((*ids.shape, *row.shape), row.dtype) for name, row in rows.items()}
        codec.enter(ids, fed)
        return fed

    return feed
