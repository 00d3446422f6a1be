"""A runner that can be reasoned about: its state is the whole history, folded into one number per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from service.engine.runner import Step
from service.engine.sequence import Array, Floats, Ids
from service.engine.state_pool import StateSpec

MODULUS = 9973


def fold(state: int, token: int) -> int:
    """The next state: depends on every token eaten and on their order."""
    return (state * 31 + token + 1) % MODULUS


def logits_of(state: int, vocabulary: int) -> Floats:
    """Logits that depend on the state alone."""
    return np.random.default_rng(state).standard_normal(vocabulary).astype(np.float32) * 3


class FakeRunner:
    """Rows are independent by construction; `fault` may raise or spoil logits, by the row's state before the step."""

    def __init__(self, vocabulary: int = 23) -> None:
        self.output_size = vocabulary
        self.states = {"state.a": StateSpec((1,), "float32"), "state.b": StateSpec((2, 3), "float32")}
        self.fault: Callable[[int, int], Exception | float | None] = lambda state, token: None
        self.steps = 0
        self._cache: dict[int, Floats] = {}

    def bind(self, ids: Ids, before: Mapping[str, Array], after: Mapping[str, Array], logits: Floats) -> Step:
        return partial(self._step, ids, before, after, logits)

    def _step(self, ids: Ids, before: Mapping[str, Array], after: Mapping[str, Array], logits: Floats) -> None:
        self.steps += 1
        for row, token in enumerate(ids.tolist()):
            state = int(before["state.a"][row, 0])
            assert (before["state.b"][row] == state).all(), "states of different rows were mixed"
            new = fold(state, token)
            after["state.a"][row], after["state.b"][row] = new, new
            if new not in self._cache:
                self._cache[new] = logits_of(new, self.output_size)
            logits[row] = self._cache[new]
            fault = self.fault(state, token)
            if isinstance(fault, Exception):
                raise fault
            if fault is not None:
                logits[row] = fault


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def greedy_oracle() -> Callable[[list[int], int, int], list[int]]:
    """Greedy tokens after a prompt, one step at a time, no engine."""

    def run(prompt: list[int], steps: int, vocabulary: int = 23) -> list[int]:
        state = 0
        for token in prompt:
            state = fold(state, token)
        tokens = []
        for _ in range(steps):
            tokens.append(int(logits_of(state, vocabulary).argmax()))
            state = fold(state, tokens[-1])
        return tokens

    return run


@pytest.fixture
def score_oracle() -> Callable[[list[int]], list[float]]:
    """The log-probability of each id of a prompt but the first, in float64."""

    def run(prompt: list[int], vocabulary: int = 23) -> list[float]:
        state, result = 0, []
        for token, target in pairwise(prompt):
            state = fold(state, token)
            logits = logits_of(state, vocabulary).astype(np.float64)
            result.append(float(logits[target] - np.log(np.exp(logits).sum())))
        return result

    return run


@pytest.fixture
def outputs_oracle() -> Callable[[list[int]], list[Floats]]:
    """What the model says after each id. <float32>[V] each"""

    def run(ids: list[int], vocabulary: int = 23) -> list[Floats]:
        state, result = 0, []
        for token in ids:
            state = fold(state, token)
            result.append(logits_of(state, vocabulary))
        return result

    return run
