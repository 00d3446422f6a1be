"""Rows that must not share a call, or must not be alone in one: for graphs whose batch axis is not really free.

Each runs in memory of its own, always the same: some kernels round a value by where it lies.

Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from carousel.service.engine.device import Tensor
from carousel.service.engine.parameters import Array
from carousel.service.engine.runner import Runner, Step, StepArrays


class Apart:
    """A Runner on the host that takes each row forward in a call of its own.

    Args:
        runner: makes the calls.
        copies: rows of a call, all of them the same one.
    """

    def __init__(self, runner: Runner, copies: int = 1) -> None:
        self.ports = runner.ports
        self._own = StepArrays.of(runner.ports, copies)
        self._step = runner.bind(self._own)

    def bind(self, arrays: StepArrays) -> Step:
        """See Runner."""
        own = self._own
        read = ((arrays.inputs, own.inputs), (arrays.before, own.before), (arrays.context, own.context))
        written = ((own.outputs, arrays.outputs), (own.after, arrays.after))
        fed = [pair for source, target in read for pair in _pairs(source, target)]
        left = [pair for source, target in written for pair in _pairs(source, target)]
        return _StepsApart(self._step, _count(arrays), fed, left)


class AtLeastTwo:
    """A Runner on the host whose calls have two rows or more: one that would be alone is there twice.

    Args:
        runner: makes the calls.
    """

    def __init__(self, runner: Runner) -> None:
        self.ports = runner.ports
        self._runner = runner
        self._twice = Apart(runner, copies=2)

    def bind(self, arrays: StepArrays) -> Step:
        """See Runner."""
        return (self._twice if _count(arrays) == 1 else self._runner).bind(arrays)


@dataclass(frozen=True, slots=True)
class _StepsApart:
    """A step of n rows, one after another: each is copied to where it is taken forward, and back from there."""

    step: Step
    n: int
    fed: list[tuple[Array, Array]]
    """From, [n, ...], and to, [copies, ...]."""
    left: list[tuple[Array, Array]]
    """From, [copies, ...], and to, [n, ...]."""

    def __call__(self) -> None:
        """Run the steps."""
        for row in range(self.n):
            for source, target in self.fed:
                target[:] = source[row]
            self.step()
            for source, target in self.left:
                target[row] = source[0]


def _count(arrays: StepArrays) -> int:
    """Rows of a step."""
    return next(iter(arrays.after.values())).shape[0]


def _pairs(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[tuple[Array, Array]]:
    """Arrays of the same name, both on the host: on a device rows are not kept apart."""
    pairs = [(tensor, target[name]) for name, tensor in source.items()]
    assert all(isinstance(tensor, np.ndarray) for pair in pairs for tensor in pair)
    return cast(list[tuple[Array, Array]], pairs)
