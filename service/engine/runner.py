"""Runs step graphs and encoder graphs.

Axes: n active rows, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from typing_extensions import override

from carousel.service.engine.device import Device, DeviceArray, Tensor, address_of
from carousel.service.engine.parameters import Array, Floats, Ids, State
from carousel.service.engine.session import NO_WEIGHTS, SHRINKING, Binding, RunnerBroken, Session, Weights, open_session
from carousel.service.engine.states.pool import StateSpec, zeros

Step = Callable[[], None]

IDS = "ids"
"""The port of a model as the engine feeds it where a codec makes of an id what the graph takes."""


@dataclass(frozen=True, slots=True)
class HeadPorts:
    """Which ports the heads of a model have to do with.

    Args:
        feeds: the input that takes the ids of prompts and those that are sampled int64[]; None where a step is fed no
            ids, but a row of every input.
        reads: the output that is sampled from, weighed or read float32[O]; None where outputs are given as they are.
        attends: the output that says where a step looked float32[rows, columns]; None where there is none.
        ids: how many there are; None where they are those of the numbers that are read.
    """

    feeds: str | None
    reads: str | None
    attends: str | None = None
    ids: int | None = None


@dataclass(frozen=True, slots=True)
class StepPorts:
    """What a step takes and gives: one row of each, by name.

    Args:
        inputs: what each step is fed.
        outputs: what it says.
        states: what it rewrites.
        after: of each state, the output that it is after a step.
        context: what it reads and never rewrites.
        head: which of these the heads have to do with.
        initial: rows that states begin with; all others begin with zeros. [...] each
    """

    inputs: Mapping[str, StateSpec]
    outputs: Mapping[str, StateSpec]
    states: Mapping[str, StateSpec]
    after: Mapping[str, str]
    context: Mapping[str, StateSpec]
    head: HeadPorts
    initial: Mapping[str, Array] = field(default_factory=dict)

    @property
    def blank(self) -> dict[str, Array]:
        """What a sequence begins with: one row of every state. Not to be written to."""
        return {name: array[0] for name, array in zeros(self.states, 1).items()} | dict(self.initial)

    @property
    def id_count(self) -> int:
        """How many ids a step may be fed; 2 where that is not known."""
        head = self.head
        if head.ids is None and head.feeds is not None and head.reads is not None:
            return self.outputs[head.reads].shape[0]
        return head.ids or 2

    @property
    def row_bytes(self) -> int:
        """What a sequence's row takes: states are there twice."""
        parts = (self.inputs, self.outputs, self.context, self.states, self.states)
        return sum(spec.row_bytes for part in parts for spec in part.values())


@dataclass(frozen=True, slots=True, eq=False)
class StepArrays:
    """What a step reads and what it writes: n rows of each.

    Args:
        inputs: what each row is fed. [n, ...] each
        before: the states to read. [n, ...] each
        context: what is read and never written. [n, ...] each
        after: where the states after the step go. [n, ...] each
        outputs: where what it says goes. [n, ...] each
    """

    inputs: Mapping[str, Array]
    before: Mapping[str, Tensor]
    context: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    outputs: Mapping[str, Array]

    @classmethod
    def of(cls, ports: StepPorts, n: int) -> StepArrays:
        """Zeros everywhere, on the host."""
        return cls(
            inputs=zeros(ports.inputs, n),
            before=zeros(ports.states, n),
            context=zeros(ports.context, n),
            after=zeros(ports.states, n),
            outputs=zeros(ports.outputs, n),
        )


class Runner(Protocol):
    """One step of every active row. Tests put a fake here."""

    ports: StepPorts

    def bind(self, arrays: StepArrays) -> Step:
        """Prepare a step over these arrays, to be run as often as one likes.

        Returns:
            A function that takes every row one step forward. It raises whatever the runtime raises; `before` is then as
            it was.
        """
        ...


class PrefillRunner(Protocol):
    """Many steps of some rows in one call. Tests put a fake here."""

    says: bool
    """Whether `steps` can be called."""

    def __call__(self, fed: Mapping[str, Array], states: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The states after these steps, as steps would have left them; it raises whatever the runtime raises.

        Args:
            fed: what each row consumes, by the step's inputs. [b, T, ...] each
            states: what they go on from. [b, ...] each
        """
        ...

    def steps(self, fed: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[State, Mapping[str, Array]]:
        """Likewise, and what each of these steps says, by the step's outputs. [b, T, ...] each"""
        ...


class NoSteps(Runner):
    """The Runner of a model that is an encoder alone: nobody asks it for a step.

    Args:
        ports: of nothing.
    """

    def __init__(self, ports: StepPorts) -> None:
        self.ports = ports

    @override
    def bind(self, arrays: StepArrays) -> Step:
        """See Runner."""
        return lambda: None


def run_zeros(runner: Runner, n: int) -> None:
    """Run n rows of zeros.

    Raises:
        RunnerBroken: that fails.
    """
    try:
        runner.bind(StepArrays.of(runner.ports, n))()
    except Exception as error:
        raise RunnerBroken(f"{type(error).__name__}: {error}") from error


class OnnxRunner:
    """A step graph in onnxruntime.

    Args:
        graph: the verified bytes of a step graph that keeps the bundle contract.
        ports: what it takes and gives.
        intra_op_threads: threads of one operator; 0 is one for each core that this process may use.
        device: where it runs, with states and context in that memory; None for the CPU and numpy arrays.
        weights: those that the graph shares with others, by name.

    Raises:
        RunnerBroken: onnxruntime cannot load the graph, or a part of it does not run on the device.
    """

    def __init__(
        self,
        graph: bytes,
        ports: StepPorts,
        intra_op_threads: int = 0,
        *,
        device: Device | None = None,
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self.ports = ports
        self._device = device
        self._session = open_session(graph, "step", intra_op_threads, device, weights=weights)

    def bind(self, arrays: StepArrays) -> Step:
        """See Runner. Inputs and outputs are bound where they lie: nothing is allocated or copied on this side.

        On a device what is fed is copied there before each run, outputs back after it. States and context that lie on
        the host are good for one run: onnxruntime copies them when they are bound, and never again.
        """
        return self._bound(arrays)

    def _bound(self, arrays: StepArrays) -> _BoundStep:
        binding = self._session.io_binding()
        feeds: list[tuple[DeviceArray, Array]] = []
        fed: dict[str, Tensor] = {**arrays.inputs}
        if self._device is not None:
            for name, array in arrays.inputs.items():
                there = fed[name] = DeviceArray.empty(self._device, array.shape, array.dtype)
                feeds.append((there, array))
        inputs: dict[str, Tensor] = {**fed, **arrays.before, **arrays.context}
        outputs: dict[str, Tensor] = {**arrays.outputs}
        outputs |= {self.ports.after[name]: array for name, array in arrays.after.items()}
        for name, tensor in inputs.items():
            binding.bind_input(name, *address_of(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *address_of(tensor))
        return _BoundStep(self._session, binding, (*inputs.values(), *outputs.values()), feeds)

    def shrink(self, rows: int) -> None:
        """Give back memory that calls of many rows have left, by one of so few: nobody asks the model yet."""
        step = self._bound(StepArrays.of(self.ports, rows))
        step.session.run_with_iobinding(step.binding, SHRINKING)


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """A step over bound memory. It holds on to the arrays: a binding only knows their addresses."""

    session: Session
    binding: Binding
    arrays: tuple[Tensor, ...]
    feeds: list[tuple[DeviceArray, Array]]
    """What is copied to a device before each run."""

    def __call__(self) -> None:
        """Run the step."""
        for there, array in self.feeds:
            there.fill(array)
        self.session.run_with_iobinding(self.binding)


Enter = Callable[[Ids, Mapping[str, Array]], None]
"""Writes ids into the arrays of the ports that they are fed to (models.codec.spec.IdCodec)."""


class IdRunner:
    """A Runner that is fed IDS, and feeds what a codec makes of them to the ports of the one below.

    Args:
        runner: of a graph that does not take ids as they are.
        enter: the codec's.
    """

    def __init__(self, runner: Runner, enter: Enter) -> None:
        self._runner = runner
        self._enter = enter
        head = replace(runner.ports.head, feeds=IDS)
        self.ports = replace(runner.ports, inputs={IDS: StateSpec((), "int64")}, head=head)

    def bind(self, arrays: StepArrays) -> Step:
        """See Runner."""
        ids, enter = cast(Ids, arrays.inputs[IDS]), self._enter
        inputs = zeros(self._runner.ports.inputs, len(ids))
        below = self._runner.bind(replace(arrays, inputs=inputs))

        def step() -> None:
            enter(ids, inputs)
            below()

        return step


class OnnxEncoder:
    """An encoder graph in onnxruntime, in a session (and threads) of its own. What it makes lies on the host.

    Args:
        graph: the verified bytes of an encoder graph that keeps the bundle contract.
        outputs: the names of the states and of the context that it makes.
        intra_op_threads: threads of one operator.
        device: where it runs, but for operators that have no kernel there; None for the CPU.
        input_name: what it is fed.
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
        input_name: str = "image",
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self._input = input_name
        self._outputs = list(outputs)
        self._session = open_session(graph, "encoder", intra_op_threads, device, whole=False, weights=weights)

    def __call__(self, inputs: Floats | Mapping[str, Array]) -> Mapping[str, Array]:
        """What the images <float32>[B, ...], or inputs by port, begin with. [B, ...] each. It raises whatever the
        runtime raises."""
        fed = inputs if isinstance(inputs, Mapping) else {self._input: inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, fed), strict=True))

    def shrink(self, image: Floats) -> None:
        """Give back memory that calls of many have left, by one of few <float32>[B, ...]."""
        self._session.run(self._outputs, {self._input: image}, SHRINKING)
