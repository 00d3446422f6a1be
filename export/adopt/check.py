"""Is the step graph the stranger's network? It is run beside the file, the file its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from carousel.export.adopt.build import Built
from carousel.export.adopt.errors import AdoptionRefused, NotTheFile
from carousel.export.adopt.lift import LIFTED
from carousel.export.adopt.pairing import Pair
from carousel.export.adopt.repair import DYNAMIC, as_product, first_mixing
from carousel.export.adopt.trial import Array, Port, Trial, distance, made_up, row_ports, take

STEPS = 200
ROWS = 5
BATCHES = (2, 3, 7, 16, 33, 128)
TOLERANCE = 1e-5
"""A fixed batch may have been fused otherwise; more than this, of an output's largest value where that is above 1, is
another network."""
INT8_TOLERANCE = 0.1
"""Where a dynamically quantised network was given float weights. One is some 0.02 from itself in other company, and
processors that add pairs of its products in 16 bits saturate besides. A wrong pairing of states is 0.3 off and more."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How far the step graph was from the file."""

    steps: int
    rows: int
    largest: float


MAX_REPAIRS = 20


def repair_rows(model: onnx.ModelProto, tell: Callable[[str], None]) -> onnx.ModelProto:
    """The step graph, of which a row alone is, bit for bit, what it is in company, wherever it stands.

    Raises:
        AdoptionRefused: it is not, and cannot be made so; with the node.
    """
    for _ in range(MAX_REPAIRS):
        mixed = _mixed(model)
        if mixed is None:
            return model
        feeds, row, output = mixed
        node = first_mixing(model, feeds, row)
        one = {name: take(array, 0, 0) for name, array in feeds.items()}
        repaired = None if node is None else as_product(model, node.name, one)
        if node is None or repaired is None:
            raise AdoptionRefused(_mixing(node, row, len(next(iter(feeds.values()))), output))
        tell(
            f"rows       {node.op_type} {node.name.removeprefix('net.')!r} is written as a product: its rows keep apart"
        )
        model = repaired
    raise AdoptionRefused(f"more than {MAX_REPAIRS} nodes mix the rows of a batch")


def _mixed(model: onnx.ModelProto) -> tuple[dict[str, Array], int, str] | None:
    """Inputs, a row of them and an output that it gives otherwise alone; None where rows keep apart."""
    random = np.random.default_rng(11)
    trial = Trial(model)
    ports = row_ports(model)
    for batch in BATCHES:
        feeds = {port.name: made_up(random, port, batch) for port in ports}
        company = trial(feeds)
        for row in range(batch):
            alone = trial({name: take(array, 0, row) for name, array in feeds.items()})
            for name, array in company.items():
                if take(array, 0, row).tobytes() != alone[name].tobytes():
                    return feeds, row, name
    return None


def _mixing(node: onnx.NodeProto | None, row: int, batch: int, output: str) -> str:
    what = "a row is not alone what it is in company"
    if node is None:
        return f"{what}: output {output!r}, row {row} of {batch}; no single node does it, so it cannot be repaired"
    told = f"{what}: {node.op_type} {node.name.removeprefix('net.')!r} mixes the rows of a batch"
    if node.op_type in DYNAMIC:
        return f"{told}, as it scales by the largest of them all; adopt it with float weights (--dequantize)"
    return f"{told} (row {row} of {batch}); replace that operator where the network is made, and export it again"


@dataclass(frozen=True, slots=True)
class FileRun:
    """The file, to be run its own way: at batch one, its states handed on by hand.

    Args:
        file: its network, untouched.
        controls: what its control inputs are given.
        ports: the inputs that are fed, with their axes.
        pairs: its states, those that adoption gave ports among them.
        times: the time axis of each output that has one.
    """

    file: onnx.ModelProto
    controls: Mapping[str, Array]
    ports: Mapping[str, Port]
    pairs: Sequence[Pair]
    times: Mapping[str, int]

    def outputs(self, built: Built, inputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """What the file says of a sequence of steps, by the step graph's names. [steps, ...] each, flat

        Args:
            built: the step graph, for its names and carries.
            inputs: of each step, by the step graph's names. [...] each
        """
        trial = Trial(self.file)
        fed = {public: self._fed(built, public, [each[public] for each in inputs]) for public in built.inputs}
        own = {
            pair.before: np.zeros(self.ports[pair.before].shape(1), self.ports[pair.before].dtype)
            for pair in self.pairs
            if not pair.before.startswith(LIFTED)
        }
        if len(own) < len(self.pairs):  # a file that keeps states to itself has no steps: the sequence is one call
            feeds = {
                built.inputs[public]: self._as_one_call(built.inputs[public], rows) for public, rows in fed.items()
            }
            told = trial({**self.controls, **feeds, **own})
            return {
                public: np.moveaxis(told[name], self.times[name], 0).reshape(len(inputs), -1)
                for public, name in built.outputs.items()
                if name in self.times
            }
        steps: list[dict[str, Array]] = []
        for place in range(len(inputs)):
            feeds = {
                built.inputs[public]: rows[place].reshape(self.ports[built.inputs[public]].shape(1))
                for public, rows in fed.items()
            }
            told = trial({**self.controls, **feeds, **own})
            own = {pair.before: told[pair.after] for pair in self.pairs}
            steps.append(told)
        names = {**built.outputs, **self._states(built)}
        return {public: np.stack([step[name].reshape(-1) for step in steps]) for public, name in names.items()}

    def _states(self, built: Built) -> dict[str, str]:
        """By the output of a state, what the file calls it; but for carries, of which it knows nothing."""
        after = {pair.before: pair.after for pair in self.pairs}
        return {told: after[built.of_states[held]] for held, told in built.states if held not in built.carries}

    def _fed(self, built: Built, public: str, rows: Sequence[Array]) -> list[Array]:
        """What an input is given at each step: with a carry, the end of what came before in front."""
        name = built.inputs[public]
        length = next((built.carries[held] for held in built.carries if built.of_states[held] == name), 0)
        if not length:
            return list(rows)
        before = np.zeros((*rows[0].shape[:-1], length), rows[0].dtype)
        whole: list[Array] = []
        for row in rows:
            whole.append(np.concatenate([before, row], axis=-1))
            before = whole[-1][..., -length:]
        return whole

    def _as_one_call(self, name: str, rows: Sequence[Array]) -> Array:
        port = self.ports[name]
        if port.time is None:
            return rows[0].reshape(port.shape(1))
        assert port.batch is not None
        moved = np.moveaxis(np.stack(rows)[None], (0, 1), (port.batch, port.time))  # from [batch, time, ...]
        return moved.reshape(port.shape(1, len(rows)))


def compare(run: FileRun, built: Built, *, dequantized: bool) -> Compared:
    """200 steps of five sequences together, against the file alone with each: outputs, and states.

    A dynamically quantised network and the same with float weights drift apart inside, and are held to their outputs.

    Raises:
        NotTheFile: they are farther apart than is allowed.
    """
    tolerance = INT8_TOLERANCE if dequantized else TOLERANCE
    random = np.random.default_rng(12)
    ports = {port.name: port for port in row_ports(built.model)}
    same = {name: made_up(random, ports[name], ROWS) for name in built.context}
    inputs = [
        {name: same[name] if name in same else made_up(random, ports[name], ROWS) for name in built.inputs}
        for _ in range(STEPS)
    ]
    states = {
        before: np.repeat(built.initial[before][None], ROWS, axis=0)
        if before in built.initial
        else np.zeros(ports[before].shape(ROWS), ports[before].dtype)
        for before, _ in built.states
    }
    step = Trial(built.model)
    told: list[dict[str, Array]] = []
    for feeds in inputs:
        told.append(step({**feeds, **states}))
        states = {before: told[-1][after] for before, after in built.states}
    largest, worst, where = 0.0, 0.0, ""
    for row in range(ROWS):
        theirs = run.outputs(built, [{name: array[row] for name, array in each.items()} for each in inputs])
        for name, expected in theirs.items():
            if dequantized and name not in built.outputs:
                continue
            error = distance(np.stack([each[name][row].reshape(-1) for each in told]), expected)
            largest = max(largest, error)
            error /= max(1.0, float(np.abs(expected).max(initial=0)))
            if not error <= worst:
                worst, where = error, name
    if not worst <= tolerance:
        raise NotTheFile(
            f"{STEPS} steps are not the file's: output {where!r} is {worst:.2g} off (allowed is {tolerance:g}); "
            "a pairing of states may be wrong (--state), or the network looks at more than one step (--time, --carry)"
        )
    return Compared(STEPS, ROWS, largest)
