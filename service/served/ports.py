"""From a bundle to what the engine is told of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.codec.spec import Array, IdCodec, Ids
from carousel.models.graph import TensorSpec
from carousel.service.engine.runner import IDS, HeadPorts, StepPorts
from carousel.service.engine.states.pool import StateSpec


def step_ports(bundle: Bundle) -> StepPorts:
    """What the step graph of a bundle takes and gives."""
    declared, head, codec = bundle.manifest.step, bundle.manifest.head, id_codec(bundle)
    inputs = {spec.name: row_spec(spec) for spec in bundle.step.inputs}
    feeds = None if codec is None else declared.inputs[0]
    ids = None if codec is None else codec.id_count
    return StepPorts(
        inputs={name: inputs[name] for name in declared.inputs},
        outputs={spec.name: row_spec(spec) for spec in bundle.step.outputs if spec.name in head.outputs},
        states={spec.name: row_spec(spec) for spec in bundle.states},
        after={state.before: state.after for state in declared.states},
        context={spec.name: row_spec(spec) for spec in bundle.context},
        head=HeadPorts(feeds, head.read_port if declared.graph else None, head.attends_port, ids),
        initial=bundle.initial,
    )


def row_spec(tensor: TensorSpec) -> StateSpec:
    """One row of a tensor whose sizes are fixed but for the batch's."""
    return StateSpec(tuple(size or 0 for size in tensor.shape[1:]), tensor.dtype)


def id_codec(bundle: Bundle) -> IdCodec | None:
    """The codec whose ids a step is fed; None where it is fed rows of its ports, or nothing."""
    inputs = bundle.manifest.step.inputs
    named = {bundle.manifest.ports.get(name) for name in inputs}
    codec = bundle.codecs.get(next(iter(named)) or "") if len(named) == 1 else None
    return codec if isinstance(codec, IdCodec) and codec.id_ports == len(inputs) else None


def live_ports(bundle: Bundle) -> Mapping[str, StateSpec]:
    """What clients feed at each step, by port: a row as the graph has it, or a number where the codec has ids."""
    if id_codec(bundle) is None:
        return step_ports(bundle).inputs
    return dict.fromkeys(bundle.manifest.step.inputs, StateSpec((), "int64"))


def as_fed(bundle: Bundle, given: Mapping[str, Array]) -> Mapping[str, Array]:
    """The same as the engine feeds it. [m, ...] each

    Raises:
        ValueError: a number is none of the codec's; what was seen, and what is allowed.
    """
    codec = id_codec(bundle)
    if codec is None:
        return given
    name = bundle.manifest.step.inputs[0] if takes_ids(bundle) else IDS
    return {name: codec.join(cast(list[Ids], [*given.values()]))}


def takes_ids(bundle: Bundle) -> bool:
    """Whether a step takes ids as they are: one port of int64, a number a row."""
    inputs = [bundle.step.input(name) for name in bundle.manifest.step.inputs]
    return len(inputs) == 1 and inputs[0] is not None and (inputs[0].dtype, inputs[0].shape) == ("int64", (None,))


def prefill_feed(bundle: Bundle) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """What prefill graphs are fed of what the engine feeds a step. [b, T, ...] each"""
    rows = step_ports(bundle).inputs
    codec = None if takes_ids(bundle) else id_codec(bundle)

    def feed(fed: Mapping[str, Array]) -> Mapping[str, Array]:
        if codec is None:
            return {name: np.ascontiguousarray(array) for name, array in fed.items()}
        (ids,) = cast(Mapping[str, Ids], fed).values()
        entered: dict[str, Array] = {name: np.zeros((*ids.shape, *row.shape), row.dtype) for name, row in rows.items()}
        codec.enter(ids, entered)
        return entered

    return feed
