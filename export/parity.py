"""Does the exported graph do what the torch model does, and does each row keep to itself?

Axes: B batch rows, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from models.bundle import Parity
from models.errors import CarouselError
from models.graph import STATE_PREFIX, next_name
from models.nn.language import LanguageModel

Array = npt.NDArray[np.generic]

MAX_ABS_ERROR = 1e-3
"""Largest difference of a logit that is published: it moves a log-probability by at most twice as much.

Another order of the same float32 sums leaves 1e-7 (random weights) to 1e-4 (trained ones); a swapped gate or state
leaves far more.
"""

BATCH_SIZES = (1, 2, 3, 7, 16, 64)
"""Where a row is compared with itself alone: the sizes at which matrix kernels change their tiling."""

THREAD_COUNTS = (1, 2)
"""Each with its own division of the work."""


class ParityError(CarouselError):
    """The exported graph must not be published."""


def measure_parity(model: LanguageModel, graph: bytes, *, steps: int = 512, rows: int = 4, seed: int = 0) -> Parity:
    """Run the graph against the model and against itself, on random tokens.

    Args:
        model: in evaluation mode: the truth.
        graph: the ONNX step graph made from it.
        steps: how long the state is carried. T
        rows: how many different token streams run side by side. B
        seed: of the random tokens and states.

    Raises:
        ParityError: a logit is off by more than MAX_ABS_ERROR, or a row depends on its neighbours.
    """
    error = _largest_error(model, graph, steps, rows, seed)
    if not error <= MAX_ABS_ERROR:  # NaN is refused too
        raise ParityError(
            f"a logit of the exported graph is off by {error:.2g} from the torch model within {steps} steps; "
            f"allowed is {MAX_ABS_ERROR:g}, so nothing was published"
        )
    for threads in THREAD_COUNTS:
        _require_row_independence(graph, threads, seed)
    return Parity(steps=steps, rows=rows, max_abs_error=error, row_independent=True)


@torch.inference_mode()
def _largest_error(model: LanguageModel, graph: bytes, steps: int, rows: int, seed: int) -> float:
    """max |logit of the graph, step by step - logit of the model, all steps at once|; NaN where either has one."""
    session = _session(graph, threads=1)
    tokens = np.random.default_rng(seed).integers(0, model.config.vocabulary_size, (rows, steps))  # [B, T]
    window = 64  # bounds the memory of the model's logits [B, window, V]
    truth_state = model.initial_state(rows)
    state: dict[str, Array] = {STATE_PREFIX + name: part.numpy() for name, part in truth_state.items()}
    largest = 0.0
    for start in range(0, steps, window):
        chunk = tokens[:, start : start + window]
        truth, truth_state = model(torch.from_numpy(chunk), truth_state)  # [B, window, V]
        for step in range(chunk.shape[1]):
            logits, state = _step(session, chunk[:, step], state)
            largest = float(np.maximum(largest, np.abs(logits - truth[:, step].numpy()).max()))
    return largest


def _require_row_independence(graph: bytes, threads: int, seed: int) -> None:
    """Row i of any batch equals the row alone, bit for bit, whatever its neighbours hold."""
    session = _session(graph, threads)
    random = np.random.default_rng(seed)
    rows = max(BATCH_SIZES)
    vocabulary_size = next(spec.shape[1] for spec in session.get_outputs() if spec.name == "logits")
    tokens = random.integers(0, vocabulary_size, rows)  # [B]
    state: dict[str, Array] = {
        spec.name: np.tanh(random.standard_normal((rows, *spec.shape[1:]))).astype(np.float32)
        for spec in session.get_inputs()
        if spec.name != "token"
    }
    alone = [_step(session, tokens[i : i + 1], _rows(state, slice(i, i + 1))) for i in range(rows)]
    for batch in BATCH_SIZES:
        for poison in (None, np.nan, np.inf, 1e38):
            fed = {name: part.copy() for name, part in _rows(state, slice(batch)).items()}
            first = 0
            if poison is not None:
                first = 1  # even rows are poisoned, odd ones are looked at
                for part in fed.values():
                    part[::2] = poison
            logits, after = _step(session, tokens[:batch], fed)
            for row in range(first, batch, first + 1):
                expected_logits, expected_after = alone[row]
                together = {"logits": logits, **after}
                for name, expected in {"logits": expected_logits, **expected_after}.items():
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
    session: onnxruntime.InferenceSession, token: Array, state: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float32], dict[str, Array]]:
    """One call. token <int64>[B], state by input name -> logits <float32>[B, V], next state by input name."""
    logits, *after = session.run(["logits", *map(next_name, state)], {"token": token, **state})
    return logits, dict(zip(state, after, strict=True))


def _rows(state: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    return {name: part[rows] for name, part in state.items()}
