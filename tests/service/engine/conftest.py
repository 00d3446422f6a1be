"""A runner that can be reasoned about: its state is the whole history, folded into one number per row."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from carousel.service.engine.device import CUDA, Device, DeviceArray, Tensor
from carousel.service.engine.parameters import Array, BeamParameters, FinishReason, Floats
from carousel.service.engine.runner import HeadPorts, Step, StepArrays, StepPorts
from carousel.service.engine.session import reason_against
from carousel.service.engine.states.pool import StateSpec

MODULUS = 9973


def fold(state: int, token: int) -> int:
    """The next state: depends on every token eaten and on their order."""
    return (state * 31 + token + 1) % MODULUS


def logits_of(state: int, vocabulary: int, levels: int = 0) -> Floats:
    """Logits that depend on the state alone; with `levels`, of so many values only: then there are ties."""
    random = np.random.default_rng(state)
    if levels:
        return random.integers(0, levels, vocabulary).astype(np.float32)
    return random.standard_normal(vocabulary).astype(np.float32) * 3


def attention_of(state: int) -> Floats:
    """Where a step looked that led to this state. <float32>[4, 5]"""
    return np.random.default_rng(state).random((4, 5)).astype(np.float32)


def view_of(tensor: Tensor) -> Array:
    """Rows where they lie. A device's memory can be looked at here, as it is the host's."""
    if not isinstance(tensor, DeviceArray):
        return tensor
    assert tensor.device.memory == "cpu"
    size = tensor.shape[0] * tensor.row_bytes
    return np.frombuffer((ctypes.c_char * size).from_address(tensor.address), tensor.dtype).reshape(tensor.shape)


@pytest.fixture(scope="session")
def view() -> Callable[[Tensor], Array]:
    return view_of


@pytest.fixture(scope="session")
def cpu_device() -> Device:
    """A device whose memory is the host's: all that is done for a GPU is done for it."""
    return Device("cpu", "CPUExecutionProvider")


@pytest.fixture(scope="session")
def cuda() -> Device:
    """The GPU."""
    reason = reason_against(CUDA)
    if reason is not None:
        pytest.skip(reason)
    return CUDA


@pytest.fixture(params=["cpu_device", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Device:
    """The device whose memory is the host's; the GPU, where there is one."""
    found: Device = request.getfixturevalue(request.param)
    return found


class FakeRunner:
    """Rows are independent by construction; `fault` may raise or spoil logits, by the row's state before the step.

    With `looks`, the model has context, which is folded into the state, and an attention map.
    """

    def __init__(self, vocabulary: int = 23, *, levels: int = 0, looks: bool = False) -> None:
        self.output_size = vocabulary
        context = {"memory.a": StateSpec((7,), "float32"), "memory.b": StateSpec((1, 2), "int64")}
        maps = {"attention": StateSpec((4, 5), "float32")}
        self.ports = StepPorts(
            inputs={"token": StateSpec((), "int64")},
            outputs={"logits": StateSpec((vocabulary,), "float32"), **(maps if looks else {})},
            states={"state.a": StateSpec((1,), "float32"), "state.b": StateSpec((2, 3), "float32")},
            after={name: f"next_{name}" for name in ("state.a", "state.b")},
            context=context if looks else {},
            head=HeadPorts("token", "logits", "attention" if looks else None),
        )
        self.levels = levels
        self.fault: Callable[[int, int], Exception | float | None] = lambda state, token: None
        self.steps = 0
        self._cache: dict[int, Floats] = {}

    def bind(self, arrays: StepArrays) -> Step:
        return partial(self._step, arrays)

    def logits_of(self, state: int) -> Floats:
        if state not in self._cache:
            self._cache[state] = logits_of(state, self.output_size, self.levels)
        return self._cache[state]

    def _step(self, arrays: StepArrays) -> None:
        self.steps += 1
        before, after, context = (
            {name: view_of(tensor) for name, tensor in part.items()}
            for part in (arrays.before, arrays.after, arrays.context)
        )
        logits = arrays.outputs["logits"]
        for row, token in enumerate(arrays.inputs["token"].tolist()):
            state = int(before["state.a"][row, 0])
            assert (before["state.b"][row] == state).all(), "states of different rows were mixed"
            new = fold(state, token)
            if context:
                value = int(context["memory.a"][row, 0])
                assert all((part[row] == value).all() for part in context.values()), "contexts were mixed"
                new = fold(new, value)
            if "attention" in arrays.outputs:
                arrays.outputs["attention"][row] = attention_of(new)
            after["state.a"][row], after["state.b"][row] = new, new
            logits[row] = self.logits_of(new)
            fault = self.fault(state, token)
            if isinstance(fault, Exception):
                raise fault
            if fault is not None:
                logits[row] = fault


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def make_runner() -> Callable[..., FakeRunner]:
    """Runners with a vocabulary, ties, context and attention as one likes."""
    return FakeRunner


def states_of(ids: list[int], context: int | None = None, start: int = 0) -> list[int]:
    """The state after each id."""
    state, states = start, []
    for token in ids:
        state = fold(state, token) if context is None else fold(fold(state, token), context)
        states.append(state)
    return states


@pytest.fixture
def states_after() -> Callable[..., list[int]]:
    return states_of


@pytest.fixture
def map_of() -> Callable[[int], Floats]:
    return attention_of


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


def log_softmax_of(logits: Floats) -> list[float]:
    """In float64, row by row."""
    values = logits.astype(np.float64)
    values = values - values.max()
    result: list[float] = (values - np.log(np.exp(values).sum())).tolist()
    return result


Found = list[tuple[tuple[int, ...], float, float, FinishReason]]


def search_slowly(parameters: BeamParameters, logits_of: Callable[[tuple[int, ...]], Floats]) -> Found:
    """The definition, word for word: [(tokens, logprob, score, reason)], best first."""
    k, live, finished = parameters.width, [((), 0.0)], Found()
    for length in range(1, parameters.max_tokens + 1):
        candidates = [
            (-(logprob + more), order, token)
            for order, (tokens, logprob) in enumerate(live)
            for token, more in enumerate(log_softmax_of(logits_of(tokens)))
            if more > -math.inf
        ]
        survivors = []
        for rank, (negative, order, token) in enumerate(sorted(candidates)[: 2 * k]):
            if token == parameters.end:
                if rank < k:
                    score = -negative / length**parameters.length_penalty
                    finished.append((live[order][0], -negative, score, FinishReason.STOP))
            elif len(survivors) < k:
                survivors.append(((*live[order][0], token), -negative))
        live = survivors
        if len(finished) >= k:
            break
        if length == parameters.max_tokens or not live:
            for tokens, logprob in live:
                finished.append((tokens, logprob, logprob / length**parameters.length_penalty, FinishReason.LENGTH))
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis[2])[: parameters.best]


@pytest.fixture
def slow_log_softmax() -> Callable[[Floats], list[float]]:
    return log_softmax_of


@pytest.fixture
def slow_search() -> Callable[..., Found]:
    return search_slowly


@pytest.fixture
def beam_oracle() -> Callable[..., Found]:
    """What a beam finds after a prompt, by the slow search: no engine, no rows."""

    def run(
        prompt: list[int],
        parameters: BeamParameters,
        *,
        vocabulary: int = 23,
        levels: int = 0,
        context: int | None = None,
        start: int = 0,
    ) -> Found:
        def step(tokens: tuple[int, ...]) -> Floats:
            return logits_of(states_of([*prompt, *tokens], context, start)[-1], vocabulary, levels)

        return search_slowly(parameters, step)

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
