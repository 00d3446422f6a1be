"""Do prefill graphs leave the bits that the step graph leaves, whoever the neighbours are and however ids are cut?

Axes: B batch rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from carousel.export.checks.parity import THREAD_COUNTS, ParityError, random_floats
from carousel.export.forward import Array
from carousel.export.runtime import open_session
from carousel.models.graph import ABOVE, BELOW, next_name
from carousel.models.nn.network import Fed, StepModule

CUTS = ((131,), (1, 130), (64, 64, 3), (16,) * 8 + (3,), (5, 2, 124))
"""Chunks that a prompt of T ids is fed in; T is longer than any chunk of the engine's."""

LONGEST_CHUNK = max(map(max, CUTS))

BATCH_SIZES = (1, 2, 3, 7, 16)

POISONS = (np.nan, np.inf, 1e38)
"""What every other row of the largest batch holds while the rest are compared."""


def require_same_states(step: StepModule, graph: bytes, prefill: Sequence[bytes], *, seed: int = 0) -> None:
    """Feed random ids to both from random states, and compare the states after the last of them, byte by byte.

    Args:
        step: whose inputs both graphs have.
        graph: the step graph, whose rows keep to themselves.
        prefill: the prefill graphs, the lowest first.
        seed: of the ids and states.

    Raises:
        ParityError: a state differs.
    """
    rows = max(BATCH_SIZES)
    ids = step.drawn((rows, sum(CUTS[0])), seed)  # [B, T]
    start = random_floats(graph, rows, seed)
    session = open_session(graph, threads=1)
    truth: Mapping[str, Array] = start
    for column in ids.swapaxes(0, 1):
        truth = _run([session], step, column, truth)
    for threads in THREAD_COUNTS:
        sessions = [open_session(each, threads) for each in prefill]
        for cut in CUTS:
            for batch in BATCH_SIZES:
                seen = _in_chunks(
                    sessions, step, ids[:batch], {name: part[:batch] for name, part in start.items()}, cut
                )
                _compare(seen, truth, slice(0, batch), f"{batch} rows, chunks of {_said(cut)}, {threads} threads")
        for poison in POISONS:
            fed = {name: part.copy() for name, part in start.items()}
            for part in fed.values():
                part[::2] = poison
            seen = _in_chunks(sessions, step, ids, fed, CUTS[0])
            _compare(seen, truth, slice(1, None, 2), f"{rows} rows, every other one's states {poison}")


def _in_chunks(
    sessions: Sequence[onnxruntime.InferenceSession],
    step: StepModule,
    ids: Fed,
    states: Mapping[str, Array],
    cut: tuple[int, ...],
) -> Mapping[str, Array]:
    start = 0
    for length in cut:
        states = _run(sessions, step, ids[:, start : start + length], states)
        start += length
    return states


def _run(
    sessions: Sequence[onnxruntime.InferenceSession], step: StepModule, ids: Fed, states: Mapping[str, Array]
) -> Mapping[str, Array]:
    """The states after a call of the step graph, or of each prefill graph, by the names they go in by. [B, ...] each"""
    after = dict(states)
    consumed = dict(step.split(ids))
    for session in sessions:
        outputs = [spec.name for spec in session.get_outputs()]
        names = [name for name in states if next_name(name) in outputs]
        asked = [*map(next_name, names), *({ABOVE} & set(outputs))]
        said = session.run(asked, {**consumed, **{name: states[name] for name in names}})
        after.update(zip(names, said, strict=False))
        consumed = {BELOW: said[-1]}
    return after


def _compare(seen: Mapping[str, Array], truth: Mapping[str, Array], rows: slice, where: str) -> None:
    for name, expected in truth.items():
        if np.ascontiguousarray(seen[name][rows]).tobytes() != np.ascontiguousarray(expected[rows]).tobytes():
            raise ParityError(
                f"{name} after {sum(CUTS[0])} ids of the prefill graphs is not what the step graph leaves, bit for bit "
                f"({where})"
            )


def _said(cut: tuple[int, ...]) -> str:
    return ", ".join(map(str, cut))
