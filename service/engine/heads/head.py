"""What becomes of a model's outputs: one class for each way, over the rows that go that way.

Axes: n active rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from carousel.service.engine.parameters import Array, FinishReason, HeadParameters, Ids, Result
from carousel.service.engine.rows.plan import Mask
from carousel.service.engine.rows.table import Columns, RowEnds
from carousel.service.engine.sequence import Sequence, TokenBatch


@dataclass(slots=True)
class Stepped:
    """A step that has been run, as heads see it, and what they have to say of it.

    Args:
        ids: what each row has consumed. <int64>[n]
        outputs: what the model said, by port. [at least n, ...] each
        done: which rows have nothing left to consume. <bool>[n]
        running: whose rows they are. [n]
        ends: rows that end with the step, and why: those that failed, at first; heads add theirs.
    """

    ids: Ids
    outputs: Mapping[str, Array]
    done: Mask
    running: list[Sequence]
    ends: RowEnds
    over: list[tuple[Sequence, FinishReason, str]] = field(default_factory=list)
    """Sequences of several rows that end."""
    batch: TokenBatch | None = None
    """What is told now."""
    added: int = 0
    """Ids that were added, those of a sequence's rows counted once."""


class Head(Protocol):
    """All rows that go one way. The caller keeps rows compact and tells of each that leaves."""

    takes: ClassVar[type[HeadParameters]]
    """What a request brings for it."""
    count: int
    """How many rows it has."""

    def acquire(self, rows: range, sequence: Sequence) -> None:
        """A sequence has joined, whose ids lie in the table's first of these rows, states in the pool's rows."""
        ...

    def after_step(self, step: Stepped) -> None:
        """Make something of the outputs, queue what is added, and say who is done."""
        ...

    def end(self, row: int, sequence: Sequence) -> tuple[int, Result | None]:
        """Forget a sequence that ends, whose row it is: how many ids it added, and what it gives in the end, if that
        was reached."""
        ...

    def release(self, row: int, last: int) -> None:
        """A row of anybody's is free, and the last one takes its place."""
        ...


class RowsOfHead(Columns):
    """Which rows are a head's own: what most heads begin with."""

    def __init__(self, max_rows: int) -> None:
        self.mine = np.zeros(max_rows, np.bool_)
        super().__init__()
        self.count = 0

    def take(self, row: int) -> None:
        """This one is."""
        self.mine[row] = True
        self.count += 1

    def release(self, row: int, last: int) -> None:
        """See Head."""
        self.count -= int(self.mine[row])
        super().release(row, last)
