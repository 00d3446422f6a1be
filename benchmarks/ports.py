"""What several ports cost: a step of the engine of a model with three inputs and two outputs, against one of the same
network whose inputs are one and whose outputs are one. `python -m benchmarks.ports`

Both have the same weights and give the same numbers: an LSTM cell of 256 units over 96 numbers, and a projection. The
graph apart concatenates what it is fed and splits what it says. Medians of steps of both in turns.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from carousel.models.cores import usable_cores
from carousel.models.graph import next_name
from carousel.service.engine.core import EngineCore
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import TensorParameters
from carousel.service.engine.port import Request
from carousel.service.engine.runner import HeadPorts, OnnxRunner, StepPorts
from carousel.service.engine.states.pool import StateSpec

INPUTS, OUTPUTS = {"audio": 64, "pitch": 24, "speaker": 8}, {"speech": 16, "energy": 4}
UNITS = 256
STEPS = 2_000
ROWS = (1, 16, 64)


def graph_of(*, apart: bool) -> bytes:
    """The step graph: i, o, f, g = [x, h] W;  c' = f c + i g;  h' = o tanh(c');  y = h' P"""
    random = np.random.default_rng(0)
    fed, said = sum(INPUTS.values()), sum(OUTPUTS.values())
    weights: dict[str, NDArray[np.generic]] = {
        "W": (random.standard_normal((fed + UNITS, 4 * UNITS)) / 16).astype(np.float32),
        "P": (random.standard_normal((UNITS, said)) / 16).astype(np.float32),
        "sizes": np.array(list(OUTPUTS.values())),
    }
    node = helper.make_node
    nodes = [
        node("Concat", [*(INPUTS if apart else ["x"]), "state.h"], ["all"], axis=1),
        node("MatMul", ["all", "W"], ["gates"]),
        node("Split", ["gates"], ["i", "o", "f", "g"], axis=1, num_outputs=4),
        *(node("Sigmoid", [gate], [f"{gate}s"]) for gate in "iof"),
        node("Tanh", ["g"], ["gt"]),
        node("Mul", ["fs", "state.c"], ["kept"]),
        node("Mul", ["is", "gt"], ["written"]),
        node("Add", ["kept", "written"], ["next_state.c"]),
        node("Tanh", ["next_state.c"], ["ct"]),
        node("Mul", ["os", "ct"], ["next_state.h"]),
        node("MatMul", ["next_state.h", "P"], ["y"]),
    ]
    if apart:
        nodes.append(node("Split", ["y", "sizes"], list(OUTPUTS), axis=1))
    states = {"state.h": UNITS, "state.c": UNITS}
    inputs = {**(INPUTS if apart else {"x": fed}), **states}
    outputs = {**(OUTPUTS if apart else {"y": said}), **{next_name(name): size for name, size in states.items()}}
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in part.items()]
        for part in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items() if apart or name != "sizes"]
    graph = helper.make_graph(nodes, "step", *ports, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString())


class Bench:
    """An engine whose rows are all busy, for as long as it is asked to step."""

    def __init__(self, rows: int, *, apart: bool) -> None:
        floats = {name: StateSpec((size,), "float32") for name, size in (INPUTS if apart else {"x": 96}).items()}
        said = {name: StateSpec((size,), "float32") for name, size in (OUTPUTS if apart else {"y": 20}).items()}
        states = {name: StateSpec((UNITS,), "float32") for name in ("state.h", "state.c")}
        ports = StepPorts(floats, said, states, {name: next_name(name) for name in states}, {}, HeadPorts(None, None))
        self._core = EngineCore(OnnxRunner(graph_of(apart=apart), ports, usable_cores()), rows)
        random = np.random.default_rng(1)
        for row in range(rows):
            x = random.standard_normal((STEPS + 1, 96)).astype(np.float32)
            cuts = np.cumsum(list(INPUTS.values()))[:-1]
            parts = dict(zip(INPUTS, np.split(x, cuts, axis=1), strict=True)) if apart else {"x": x}
            prompt, inputs = fed_steps(floats, parts)
            self._core.add(row, Request(prompt, TensorParameters(tuple(said), each=True), inputs=inputs))
        self._core.step()

    def step(self) -> float:
        """How many seconds a step took."""
        started = perf_counter()
        self._core.step()
        return perf_counter() - started


def main() -> None:
    """Print a line for each number of rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ports", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1_000, help=f"of each, at most {STEPS:,} (default: 1000)")
    steps = min(parser.parse_args().steps, STEPS)
    for rows in ROWS:
        one, many = Bench(rows, apart=False), Bench(rows, apart=True)
        seconds = [(one.step(), many.step()) for _ in range(steps)]
        concatenated, apart = (1e6 * median(of) for of in zip(*seconds, strict=True))
        print(
            f"{rows:>3} rows: {apart:7.1f} us a step with {len(INPUTS)} inputs and {len(OUTPUTS)} outputs, "
            f"{concatenated:7.1f} us concatenated, {apart / concatenated:.3f} times"
        )


if __name__ == "__main__":
    main()
