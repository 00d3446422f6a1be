"""The trail of a tracing session: what a picture of it needs, a few bytes per attempt.

A mark is the attempt's id as a little-endian uint32, then P(correct) at every skill after it, in 255ths: a colour tells
no more apart.

Axes: T attempts, S skills.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from carousel.service.engine.parameters import Floats, Ids

LEVELS = 255


def marks_of(ids: Ids, outputs: Floats) -> list[bytes]:
    """The marks of the last attempts.

    Args:
        ids: of at least T attempts; those of the last T are taken. <int64>[N]
        outputs: P(correct) after each. <float32>[T, S]
    """
    levels = np.rint(outputs * LEVELS).astype(np.uint8)  # [T, S]
    heads = ids[-len(outputs) :].astype("<u4")
    return [head.tobytes() + row.tobytes() for head, row in zip(heads, levels, strict=True)]


def read_marks(trail: Sequence[bytes]) -> tuple[Ids, Floats]:
    """The inverse, up to rounding: ids <int64>[T] and probabilities <float32>[T, S].

    T may be 0: a store that is full may have let a trail go and not its session.
    """
    if not trail:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    ids = np.array([int.from_bytes(mark[:4], "little") for mark in trail], np.int64)
    levels = np.array([np.frombuffer(mark, np.uint8, offset=4) for mark in trail])
    return ids, levels.astype(np.float32) / np.float32(LEVELS)
