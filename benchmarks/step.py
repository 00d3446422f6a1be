"""A step graph in plain onnxruntime: what the naive peer calls, and what the bare loop times for scale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from carousel.models.bundle import STEP_GRAPH, Bundle
from carousel.models.cores import usable_cores
from carousel.models.graph import next_name

PROVIDERS_VARIABLE = "CAROUSEL_PROVIDERS"

States = Mapping[str, NDArray[Any]]


class Step(Protocol):
    """What takes one step of a language model. Axes: B rows, V vocabulary."""

    def initial_states(self, rows: int) -> Any:
        """As at a text's start, in a form of its own."""

    def run(self, tokens: NDArray[np.int64], states: Any) -> tuple[NDArray[np.float32], Any]:
        """One step. tokens <int64>[B] -> logits <float32>[B, V] and the states after it."""


def default_options() -> onnxruntime.SessionOptions:
    """Onnxruntime's defaults, but where this process may not use all cores: there it would start threads for all."""
    options = onnxruntime.SessionOptions()
    if (cores := usable_cores()) < (os.cpu_count() or 1):
        options.intra_op_num_threads = cores
    return options


class StepGraph:
    """A bundle's step graph in a session with onnxruntime's own defaults. Axes: B rows, V vocabulary.

    It runs where the service is told to run, by the same variable: on a GPU, arrays go there and back at every call, as
    they do for whoever calls `session.run`.
    """

    def __init__(self, bundle: Bundle) -> None:
        providers = ["CPUExecutionProvider"]
        if os.environ.get(PROVIDERS_VARIABLE) == "cuda":
            onnxruntime.preload_dlls()
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(bundle.path / STEP_GRAPH, default_options(), providers)
        self._states = [spec.name for spec in bundle.states]
        self._outputs = ["logits", *map(next_name, self._states)]
        # The contract fixes every size but the batch's.
        self._rows = [(spec.name, [size or 0 for size in spec.shape[1:]], spec.dtype) for spec in bundle.states]

    def initial_states(self, rows: int) -> States:
        """Zeros, as at a text's start. [rows, ...] each"""
        return {name: np.zeros((rows, *shape), dtype) for name, shape, dtype in self._rows}

    def run(self, tokens: NDArray[np.int64], states: States) -> tuple[NDArray[np.float32], States]:
        """One step. tokens <int64>[B] -> logits <float32>[B, V] and the states after it."""
        logits, *after = self._session.run(self._outputs, {"token": tokens, **states})
        return logits, dict(zip(self._states, after, strict=True))


def bare_tokens_per_second(graph: StepGraph, vocabulary_size: int, rows: int, seconds: float) -> float:
    """Row-steps per second of the graph alone, in a tight loop that carries the state; nothing is sampled or sent."""
    tokens = np.random.default_rng(rows).integers(0, vocabulary_size, rows)
    states = graph.initial_states(rows)
    for _ in range(3):
        _, states = graph.run(tokens, states)
    steps, began = 0, perf_counter()
    while (elapsed := perf_counter() - began) < seconds:
        _, states = graph.run(tokens, states)
        steps += 1
    return rows * steps / elapsed
