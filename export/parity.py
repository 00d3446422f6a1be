"""Does the exported graph do what the torch model does, and does each row keep to itself?

Axes: B batch rows, T steps, V vocabulary (or skills).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.step_module import Model, StepModule, step_module
from models.bundle import Parity
from models.errors import CarouselError
from models.graph import STATE_PREFIX, next_name
from models.nn.language import LanguageModel
from models.nn.recurrent import RecurrentState
from models.step import STEP_OUTPUT

Array = npt.NDArray[np.generic]
Ids = npt.NDArray[np.int64]
N = TypeVar("N", bound=np.generic)

MAX_ABS_ERROR = {"logits": 1e-3, "probability": 1e-4}
"""Largest difference of an output that is published: a logit's moves a log-probability by at most twice as much.

Another order of the same float32 sums leaves 1e-7 (random weights) to 1e-4 (trained ones); a swapped gate or state
leaves far more.
"""

BATCH_SIZES = (1, 2, 3, 7, 16, 64)
"""Where a row is compared with itself alone: the sizes at which matrix kernels change their tiling."""

THREAD_COUNTS = (1, 2)
"""Each with its own division of the work."""


class ParityError(CarouselError):
    """The exported graph must not be published."""


def measure_parity(model: Model, graph: bytes, *, steps: int = 512, rows: int = 4, seed: int = 0) -> Parity:
    """Run the graph against the model and against itself, on random inputs.

    Args:
        model: in evaluation mode: the truth.
        graph: the ONNX step graph made from it.
        steps: how long the state is carried. T
        rows: how many different sequences run side by side. B
        seed: of the random inputs and states.

    Raises:
        ParityError: an output is off by more than MAX_ABS_ERROR, or a row depends on its neighbours.
    """
    step = step_module(model)
    error = _largest_error(model, step, graph, steps, rows, seed)
    output = STEP_OUTPUT[step.task]
    allowed = MAX_ABS_ERROR[output]
    if not error <= allowed:  # NaN is refused too
        raise ParityError(
            f"{output} of the exported graph: an entry is off by {error:.2g} from the torch model within {steps} "
            f"steps; allowed is {allowed:g}, so nothing was published"
        )
    for threads in THREAD_COUNTS:
        _require_row_independence(step, graph, threads, seed)
    return Parity(steps=steps, rows=rows, max_abs_error=error, row_independent=True)


@torch.inference_mode()
def _largest_error(model: Model, step: StepModule, graph: bytes, steps: int, rows: int, seed: int) -> float:
    """max |output of the graph, step by step - of the model, all steps at once|; NaN where either has one."""
    session = _session(graph, threads=1)
    inputs = _random_inputs(step, (rows, steps), seed)  # [B, T] each
    window = 64  # bounds the memory of the model's output [B, window, V]
    truth_state = model.initial_state(rows)
    state: dict[str, Array] = {STATE_PREFIX + name: part.numpy() for name, part in truth_state.items()}
    largest = 0.0
    for start in range(0, steps, window):
        chunk = {name: values[:, start : start + window] for name, values in inputs.items()}
        truth, truth_state = _truth(model, chunk, truth_state)  # [B, window, V]
        for position in range(truth.shape[1]):
            fed = {name: values[:, position] for name, values in chunk.items()}
            seen, state = _step(session, step, fed, state)
            largest = float(np.maximum(largest, np.abs(seen - truth[:, position]).max()))
    return largest


def _truth(
    model: Model, inputs: Mapping[str, Ids], state: RecurrentState
) -> tuple[npt.NDArray[np.float32], RecurrentState]:
    """The step's output for many steps at once, by the torch model. <float32>[B, T, V]"""
    if isinstance(model, LanguageModel):
        logits, after = model(torch.from_numpy(inputs["token"]), state)
        return logits.numpy(), after
    logits, after = model(torch.from_numpy(2 * inputs["skill"] + inputs["correct"]), state)
    return torch.sigmoid(logits).numpy(), after


def _random_inputs(step: StepModule, shape: tuple[int, ...], seed: int) -> dict[str, Ids]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, bound, shape) for name, bound in step.input_bounds.items()}


def _require_row_independence(step: StepModule, graph: bytes, threads: int, seed: int) -> None:
    """Row i of any batch equals the row alone, bit for bit, whatever its neighbours hold."""
    session = _session(graph, threads)
    random = np.random.default_rng(seed)
    rows = max(BATCH_SIZES)
    inputs = _random_inputs(step, (rows,), seed)  # [B] each
    state: dict[str, Array] = {
        spec.name: np.tanh(random.standard_normal((rows, *spec.shape[1:]))).astype(np.float32)
        for spec in session.get_inputs()
        if spec.name.startswith(STATE_PREFIX)
    }
    output = STEP_OUTPUT[step.task]
    alone = [_step(session, step, _rows(inputs, slice(i, i + 1)), _rows(state, slice(i, i + 1))) for i in range(rows)]
    for batch in BATCH_SIZES:
        for poison in (None, np.nan, np.inf, 1e38):
            fed = {name: part.copy() for name, part in _rows(state, slice(batch)).items()}
            first = 0
            if poison is not None:
                first = 1  # even rows are poisoned, odd ones are looked at
                for part in fed.values():
                    part[::2] = poison
            said, after = _step(session, step, _rows(inputs, slice(batch)), fed)
            for row in range(first, batch, first + 1):
                expected_said, expected_after = alone[row]
                together = {output: said, **after}
                for name, expected in {output: expected_said, **expected_after}.items():
                    if together[name][row].tobytes() != expected[0].tobytes():
                        raise ParityError(
                            f"{name} of row {row} in a batch of {batch} is not what the row gives alone, bit for bit "
                            f"(neighbours' state {'like its own' if poison is None else poison}, {threads} threads); "
                            "a served result must not depend on its neighbours, so nothing was published"
                        )


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # not while others want the core
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _step(
    session: onnxruntime.InferenceSession, step: StepModule, inputs: Mapping[str, Ids], state: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float32], dict[str, Array]]:
    """One call. inputs <int64>[B] each, state by input name -> output <float32>[B, V], next state by input name."""
    output, *after = session.run([STEP_OUTPUT[step.task], *map(next_name, state)], {**inputs, **state})
    return output, dict(zip(state, after, strict=True))


def _rows(arrays: Mapping[str, npt.NDArray[N]], rows: slice) -> dict[str, npt.NDArray[N]]:
    return {name: part[rows] for name, part in arrays.items()}
