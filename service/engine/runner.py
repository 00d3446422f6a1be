"""Runs step graphs. The only module that knows onnxruntime.

Axes: n active rows, O outputs of a step (a vocabulary's or a list of skills' size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime

from models.graph import next_name
from models.step import STEP_INPUTS, STEP_OUTPUT, Task
from service.engine.sequence import Array, Floats, Ids
from service.engine.state_pool import StateSpec

Step = Callable[[], None]


class RunnerBroken(Exception):
    """The runner cannot be made, or fails on rows of zeros too: it will not recover."""


class Runner(Protocol):
    """One step of every active row. Tests put a fake here."""

    output_size: int
    states: Mapping[str, StateSpec]

    def bind(self, ids: Ids, before: Mapping[str, Array], after: Mapping[str, Array], outputs: Floats) -> Step:
        """Prepare a step over these arrays, to be run as often as one likes.

        Args:
            ids: what each row eats. <int64>[n]
            before: the states to read. [n, ...] each
            after: where the states after the step go. [n, ...] each
            outputs: where the logits or probabilities go. <float32>[n, O]

        Returns:
            A function that eats one id per row. It raises whatever the runtime raises; `before` is then as it was.
        """
        ...


class OnnxRunner:
    """A step graph in onnxruntime, on the CPU.

    Args:
        graph: the verified bytes of a step graph that keeps the bundle contract.
        task: what the graph eats and says (models.step). A row eats one id, whatever the task: that of a token, or of
            an attempt, `2 * skill + correct`.
        states: the shape of each state, by name.
        output_size: O.
        intra_op_threads: threads of one operator; 0 leaves the choice to onnxruntime (one per core).

    Raises:
        RunnerBroken: onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        graph: bytes,
        task: Task,
        states: Mapping[str, StateSpec],
        output_size: int,
        intra_op_threads: int = 0,
    ) -> None:
        self.states = states
        self.output_size = output_size
        self._task = task
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.log_severity_level = 3
        # onnxruntime's threads spin while they wait for work. Within a step that is worth it; between steps they would
        # take a core from the event loop, which has the last step's tokens to send.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no root error of its own
            raise RunnerBroken(f"onnxruntime cannot load the step graph ({error})") from None

    def bind(self, ids: Ids, before: Mapping[str, Array], after: Mapping[str, Array], outputs: Floats) -> Step:
        """See Runner. Inputs and outputs are bound where they lie: nothing is allocated or copied on this side."""
        binding = self._session.io_binding()
        inputs = [ids] if self._task == "language" else [np.zeros_like(ids), np.zeros_like(ids)]
        for name, array in zip(STEP_INPUTS[self._task], inputs, strict=True):
            _bind(binding.bind_input, name, array)
        _bind(binding.bind_output, STEP_OUTPUT[self._task], outputs)
        for name in self.states:
            _bind(binding.bind_input, name, before[name])
            _bind(binding.bind_output, next_name(name), after[name])
        step = _BoundStep(self._session, binding, (*inputs, outputs, *before.values(), *after.values()))
        return step if self._task == "language" else _AttemptStep(step, ids, *inputs)


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """A step over bound memory. It holds on to the arrays: a binding only knows their addresses."""

    session: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    arrays: tuple[Array, ...]

    def __call__(self) -> None:
        """Run the step."""
        self.session.run_with_iobinding(self.binding)


@dataclass(frozen=True, slots=True)
class _AttemptStep:
    """A step that splits the ids of attempts into what a tracing graph eats."""

    step: _BoundStep
    ids: Ids
    skill: Ids
    correct: Ids

    def __call__(self) -> None:
        """Run the step."""
        np.right_shift(self.ids, 1, out=self.skill)
        np.bitwise_and(self.ids, 1, out=self.correct)
        self.step()


def _bind(bind: Callable[..., Any], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
