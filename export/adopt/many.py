"""The graph that takes many steps in a call, where the file has an axis of time: the bundle's prefill graph.

It is published only where it leaves what single steps leave, and says what they say, bit for bit: whether a network
does depends on its operators, and on what onnxruntime makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from carousel.export.adopt.axes import Found
from carousel.export.adopt.build import Built, build_step
from carousel.export.adopt.pairing import Pair
from carousel.export.adopt.trial import Array, Port, Trial, made_up, row_ports

TRIED = ((1, 2), (8, 3), (3, 51))
"""Rows and steps: one sequence alone, as many as share a call of the service, and many steps."""


def build_many(
    found: Found,
    pairs: Sequence[Pair],
    times: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[np.generic]],
    carries: Mapping[str, int],
    initial: Mapping[str, Array],
) -> Built | None:
    """See build_step; None where something has no axis of time, or is carried from step to step outside of the file."""
    befores, afters = {pair.before for pair in pairs}, {pair.after for pair in pairs}
    fed = [port for name, port in found.inputs.items() if name not in befores]
    said = [name for name in shapes if name not in afters]
    if carries or not said or any(port.time is None for port in fed) or any(name not in times for name in said):
        return None
    return build_step(found, pairs, times, shapes, dtypes, carries, initial, steps=True)


def is_alike(many: Built, step: Built) -> bool:
    """Whether both leave and say the same bits, and the former runs at all."""
    random = np.random.default_rng(13)
    try:
        one, all_at_once = Trial(step.model), Trial(many.model)
        return all(_is_alike(random, all_at_once, one, step, rows, steps) for rows, steps in TRIED)
    except Exception:  # onnxruntime has no root error of its own
        return False


def _is_alike(random: np.random.Generator, many: Trial, one: Trial, step: Built, rows: int, steps: int) -> bool:
    ports = {port.name: port for port in row_ports(step.model)}
    fed = {name: _with_steps(random, ports[name], rows, steps) for name in step.inputs}
    states = {before: made_up(random, ports[before], rows) for before, _ in step.states}
    together = many({**fed, **states})
    for place in range(steps):
        told = one({**{name: array[:, place] for name, array in fed.items()}, **states})
        states = {before: told[after] for before, after in step.states}
        if any(told[name].tobytes() != together[name][:, place].tobytes() for name in step.outputs):
            return False
    return all(states[before].tobytes() == together[after].tobytes() for before, after in step.states)


def _with_steps(random: np.random.Generator, port: Port, rows: int, steps: int) -> Array:
    """[rows, steps, ...]"""
    return made_up(random, replace(port, sizes=(None, None, *port.sizes[1:]), time=1), rows, steps)
