"""Runs step graphs and encoder graphs.

Axes: n active rows, O outputs of a step (a vocabulary's or a list of skills' size), B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from carousel.models.encoder import IMAGE
from carousel.models.graph import next_name
from carousel.models.step import ATTENTION, STEP_INPUTS, STEP_OUTPUT, Task
from carousel.service.engine.device import Device, DeviceArray, Tensor, address_of
from carousel.service.engine.sequence import Array, Floats, Ids
from carousel.service.engine.session import NO_WEIGHTS, Binding, RunnerBroken, Session, Weights, open_session
from carousel.service.engine.states.pool import StateSpec, zeros

Step = Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class StepArrays:
    """What a step reads and what it writes: n rows of each.

    Args:
        ids: what each row eats. <int64>[n]
        before: the states to read. [n, ...] each
        memories: what is read and never written. [n, ...] each
        after: where the states after the step go. [n, ...] each
        outputs: where the logits or probabilities go. <float32>[n, O]
        attention: where it goes where the model looked, if it says so. <float32>[n, rows, columns]
    """

    ids: Ids
    before: Mapping[str, Tensor]
    memories: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    outputs: Floats
    attention: Floats | None


class Runner(Protocol):
    """One step of every active row. Tests put a fake here."""

    output_size: int
    states: Mapping[str, StateSpec]
    memories: Mapping[str, StateSpec]
    attention: tuple[int, int] | None
    """Rows and columns of the map that says where a step looked; None where the model says nothing of it."""

    def bind(self, arrays: StepArrays) -> Step:
        """Prepare a step over these arrays, to be run as often as one likes.

        Returns:
            A function that eats one id per row. It raises whatever the runtime raises; `before` is then as it was.
        """
        ...


class PrefillRunner(Protocol):
    """Many steps of some rows in one call. Tests put a fake here."""

    def __call__(self, ids: Ids, states: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The states after these ids, as steps would have left them; it raises whatever the runtime raises.

        Args:
            ids: what each row eats. <int64>[b, T]
            states: what they go on from. [b, ...] each
        """
        ...


def probe(runner: Runner, n: int) -> None:
    """Run n rows of zeros.

    Raises:
        RunnerBroken: that fails.
    """
    arrays = StepArrays(
        ids=np.zeros(n, np.int64),
        before=zeros(runner.states, n),
        memories=zeros(runner.memories, n),
        after=zeros(runner.states, n),
        outputs=np.zeros((n, runner.output_size), np.float32),
        attention=None if runner.attention is None else np.zeros((n, *runner.attention), np.float32),
    )
    try:
        runner.bind(arrays)()
    except Exception as error:
        raise RunnerBroken(f"{type(error).__name__}: {error}") from error


class OnnxRunner:
    """A step graph in onnxruntime.

    Args:
        graph: the verified bytes of a step graph that keeps the bundle contract.
        task: what the graph eats and says (models.step). A row eats one id, whatever the task: that of a token, or of
            an attempt, `2 * skill + correct`.
        states: the shape of each state, by name.
        output_size: O.
        intra_op_threads: threads of one operator; 0 is one for each core that this process may use.
        memories: the shape of each memory, by name.
        attention: rows and columns of the graph's attention, where it has any.
        device: where it runs, with states and memories in that memory; None for the CPU and numpy arrays.
        weights: those that the graph shares with others, by name.

    Raises:
        RunnerBroken: onnxruntime cannot load the graph, or a part of it does not run on the device.
    """

    def __init__(
        self,
        graph: bytes,
        task: Task,
        states: Mapping[str, StateSpec],
        output_size: int,
        intra_op_threads: int = 0,
        *,
        memories: Mapping[str, StateSpec] | None = None,
        attention: tuple[int, int] | None = None,
        device: Device | None = None,
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self.states = states
        self.memories = memories or {}
        self.attention = attention
        self.output_size = output_size
        self._task = task
        self._device = device
        self._session = open_session(graph, "step", intra_op_threads, device, weights=weights)

    def bind(self, arrays: StepArrays) -> Step:
        """See Runner. Inputs and outputs are bound where they lie: nothing is allocated or copied on this side.

        On a device ids are copied there before each run, outputs back after it. States and memories that lie on the
        host are good for one run: onnxruntime copies them when they are bound, and never again.
        """
        binding = self._session.io_binding()
        ids = arrays.ids
        eaten = [np.zeros_like(ids), np.zeros_like(ids)] if self._task == "tracing" else [ids]
        feeds: list[tuple[DeviceArray, Ids]] = []
        if self._device is not None:
            feeds = [(DeviceArray.empty(self._device, part.shape, part.dtype), part) for part in eaten]
        fed = [array for array, _ in feeds] or eaten
        inputs: dict[str, Tensor] = {
            **dict(zip(STEP_INPUTS[self._task], fed, strict=True)),
            **arrays.before,
            **arrays.memories,
        }
        outputs: dict[str, Tensor] = {STEP_OUTPUT[self._task]: arrays.outputs}
        outputs |= {next_name(name): array for name, array in arrays.after.items()}
        if arrays.attention is not None:
            outputs[ATTENTION] = arrays.attention
        for name, array in inputs.items():
            binding.bind_input(name, *address_of(array))
        for name, array in outputs.items():
            binding.bind_output(name, *address_of(array))
        step = _BoundStep(self._session, binding, (*inputs.values(), *outputs.values()), feeds)
        return _AttemptStep(step, ids, *eaten) if self._task == "tracing" else step


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """A step over bound memory. It holds on to the arrays: a binding only knows their addresses."""

    session: Session
    binding: Binding
    arrays: tuple[Tensor, ...]
    feeds: list[tuple[DeviceArray, Ids]]
    """What is copied to a device before each run."""

    def __call__(self) -> None:
        """Run the step."""
        for array, ids in self.feeds:
            array.fill(ids)
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


class OnnxEncoder:
    """An encoder graph in onnxruntime, in a session (and threads) of its own. What it makes lies on the host.

    Args:
        graph: the verified bytes of an encoder graph that keeps the bundle contract.
        outputs: the names of the states and memories that it makes.
        intra_op_threads: threads of one operator.
        device: where it runs, but for operators that have no kernel there; None for the CPU.
        weights: those that the graph shares with others, by name.

    Raises:
        RunnerBroken: onnxruntime cannot load the graph, or finds no device.
    """

    def __init__(
        self,
        graph: bytes,
        outputs: Iterable[str],
        intra_op_threads: int,
        device: Device | None = None,
        *,
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self._outputs = list(outputs)
        self._session = open_session(graph, "encoder", intra_op_threads, device, whole=False, weights=weights)

    def __call__(self, images: Floats) -> Mapping[str, Array]:
        """What the images <float32>[B, ...] begin with. [B, ...] each. It raises whatever the runtime raises."""
        return dict(zip(self._outputs, self._session.run(self._outputs, {IMAGE: images}), strict=True))
