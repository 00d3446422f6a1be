"""What a live sequence (live.py) is fed, and what came of it.

Axes: m steps that are fed together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from carousel.service.engine.parameters import Array


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Fed:
    """Steps that a live sequence is to take, answered together.

    Args:
        steps: m, at least 1.
        inputs: what it is fed at each, by port, in the model's types. [m, ...] each
    """

    steps: int
    inputs: Mapping[str, Array]


class Answer(NamedTuple):
    """What came of one Fed. Where that failed, the sequence is as it was before it, and goes on.

    `outputs` are those that were asked for, in that order, of each step or of the last [m, ...] or [1, ...] each;
    `error` is why there are none.
    """

    outputs: tuple[Array, ...]
    error: str | None = None
