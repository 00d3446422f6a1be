"""Does the exported graph do what the torch model does, and does each row keep to itself?

Axes: B batch rows, T steps, V vocabulary (or skills).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from carousel.export.forward import Array, GraphForward
from carousel.export.runtime import open_session
from carousel.models.errors import CarouselError
from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX
from carousel.models.manifest import Parity, Precision
from carousel.models.nn.network import Fed, Network, StepModule
from carousel.models.nn.score import TorchForward

N = TypeVar("N", bound=np.generic)

MAX_ABS_ERROR = {"logits": 1e-3, "probability": 1e-4, "value": 1e-4}
"""Largest difference of an fp32 graph's output that is published: a logit's moves a log-probability by at most twice as
much.

Another order of the same float32 sums leaves 1e-7 (random weights) to 1e-4 (trained ones); a swapped gate or state
leaves far more. What int8 may cost is judged on validation data instead (export/precision.py).
"""

MAX_BATCH = 128
"""Up to here a step's row is compared, in a batch of every size, with itself alone: matrix kernels change their tiling.
"""

THREAD_COUNTS = (1, 2)
"""Each with its own division of the work."""

WINDOW = 64
"""Steps compared at once: bounds the memory of the outputs [B, T, V]."""


class ParityError(CarouselError):
    """The exported graph must not be published."""


def measure_parity(
    model: Network, graph: bytes, precision: Precision = "fp32", *, steps: int = 512, rows: int = 4, seed: int = 0
) -> Parity:
    """Run the graph against the model and against itself, on random inputs.

    Args:
        model: in evaluation mode: the truth.
        graph: the ONNX step graph made from it.
        precision: of the graph.
        steps: how long the state is carried. T
        rows: how many different sequences run side by side. B
        seed: of the random inputs and states.

    Raises:
        ParityError: an fp32 graph's output is off by more than MAX_ABS_ERROR, any graph's is no number, or a row
            depends on its neighbours.
    """
    step = model.step_module()
    error = _largest_error(model, step, graph, steps, rows, seed)
    allowed = MAX_ABS_ERROR[step.output] if precision == "fp32" else math.inf
    if not error <= allowed:  # NaN is refused too
        raise ParityError(
            f"{step.output} of the exported graph: an entry is off by {error:.2g} from the torch model within {steps} "
            f"steps; allowed is {allowed:g}, so nothing was published"
        )
    ids = step.split(step.drawn((MAX_BATCH,), seed))  # [B] each
    require_row_independence(graph, ids, random_floats(graph, MAX_BATCH, seed))
    return Parity(steps=steps, rows=rows, max_abs_error=error, row_independent=True)


def _largest_error(model: Network, step: StepModule, graph: bytes, steps: int, rows: int, seed: int) -> float:
    """max |output of the graph, step by step - of the model, all steps at once|; NaN where either has one."""
    truth, seen = TorchForward(model, rows), GraphForward(graph, step, rows)
    ids = torch.from_numpy(step.drawn((rows, steps), seed))  # [B, T]
    return float(np.max([(seen(chunk) - truth(chunk)).abs().max() for chunk in torch.split(ids, WINDOW, dim=1)]))


def random_floats(graph: bytes, rows: int, seed: int) -> dict[str, Array]:
    """Of every input that is no id: states, and context. <float32>[B, ...] each"""
    random = np.random.default_rng(seed)
    return {
        spec.name: np.tanh(random.standard_normal((rows, *spec.shape[1:]))).astype(np.float32)
        for spec in open_session(graph, threads=1).get_inputs()
        if spec.name.startswith((STATE_PREFIX, CONTEXT_PREFIX))
    }


def require_row_independence(
    graph: bytes,
    ids: Mapping[str, Fed],
    floats: Mapping[str, Array],
    *,
    sizes: Sequence[int] = range(1, MAX_BATCH + 1),
) -> None:
    """Row i of any batch equals the row alone, bit for bit, whatever its neighbours hold and however many threads run.

    Args:
        graph: whose outputs are looked at, all of them.
        ids: inputs that neighbours keep. <int64>[max(sizes)] each
        floats: inputs that neighbours have poisoned, too. <float32>[max(sizes), ...] each
        sizes: of the batches.

    Raises:
        ParityError: a row depends on its neighbours.
    """
    kind = next(iter(floats)).partition(".")[0]
    for threads in THREAD_COUNTS:
        session = open_session(graph, threads)
        rows = [_step(session, _rows({**ids, **floats}, slice(row, row + 1))) for row in range(max(sizes))]
        alone = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for batch in sizes:
            for poison in (None, np.nan, np.inf, 1e38):
                looked_at = range(batch) if poison is None else range(1, batch, 2)
                fed = {name: part.copy() for name, part in _rows(floats, slice(batch)).items()}
                if poison is not None:
                    for part in fed.values():
                        part[::2] = poison
                together = _step(session, {**_rows(ids, slice(batch)), **fed})
                for name, said in together.items():
                    row = _first_difference(said, alone[name], looked_at)
                    if row is not None:
                        raise ParityError(
                            f"{name} of row {row} in a batch of {batch} is not what the row gives alone, bit for bit "
                            f"(neighbours' {kind} {'like its own' if poison is None else poison}, {threads} threads); "
                            "a served result must not depend on its neighbours, so nothing was published"
                        )


def _first_difference(said: Array, alone: Array, rows: range) -> int | None:
    """The first of the rows whose bytes differ; None where none does."""
    chosen = slice(rows.start, rows.stop, rows.step)
    if said[chosen].tobytes() == alone[chosen].tobytes():
        return None
    return next(row for row in rows if said[row].tobytes() != alone[row].tobytes())


def _step(session: onnxruntime.InferenceSession, fed: Mapping[str, Array]) -> dict[str, Array]:
    """One call: everything that the graph says, by name. [B, ...] each"""
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def _rows(arrays: Mapping[str, npt.NDArray[N]], rows: slice) -> dict[str, npt.NDArray[N]]:
    return {name: part[rows] for name, part in arrays.items()}
