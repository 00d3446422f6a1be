"""Long prompts and histories taken many ids forward in one call, between the steps of everybody.

A row whose prompt is long is in every step like any other. Before a step it eats a chunk more, up to the ids whose
outputs somebody wants: those are left to steps. What the calls leave is what steps would have left, bit for bit, so
nobody can tell from a result how a prompt was cut.

Axes: b rows that are taken forward together, T ids of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from service.engine.device import Tensor
from service.engine.plan import Rows
from service.engine.prefill_runner import MIN_PIECES, PIECE
from service.engine.rows import RowTable
from service.engine.runner import PrefillRunner, Runner, RunnerBroken, StepArrays
from service.engine.sequence import Sequence
from service.engine.state_pool import StatePool, zeros

logger = logging.getLogger("carousel.engine")

MAX_TOKENS = 32
"""Ids between two steps, of all rows, while others wait for the next. It is what they wait longer: service/README.md
has the figures that it was chosen by."""

MAX_TOKENS_ALONE = 512
"""Likewise where every row eats a prompt: then it is only who joins or leaves that waits."""

MAX_ROWS = 8
"""Rows in one call, first come first served. With eight a token costs a third of what it costs with one; with sixteen
hardly less than with eight. No call begins with less of the budget left: each of its rows eats at least one id."""

MIN_TOKENS = 3
"""A prompt with less to eat is left to steps. At three a call costs about what it saves, and the first token comes
after one step instead of four."""


class Prefill:
    """Which rows have a long prompt before them, and how they get through it.

    Args:
        runner: runs the prefill graph; None where there is none: then all is left to steps.
        pool: the states, which are read and written in place.
        table: what the rows have queued.
        clock: seconds, monotonic.
    """

    def __init__(
        self, runner: PrefillRunner | None, pool: StatePool, table: RowTable, clock: Callable[[], float]
    ) -> None:
        self._runner = runner
        self._pool = pool
        self._table = table
        self._clock = clock
        self._left: dict[Sequence, int] = {}
        """Who is being taken forward, in order of arrival, and how many of the last ids are left to steps."""

    def __len__(self) -> int:
        """How many rows are being taken forward."""
        return len(self._left)

    def check(self, steps: Runner) -> None:
        """Do without a prefill graph that leaves other bits than steps do on this machine.

        Export has made sure of more, on the machine that exported; another processor may have other kernels.

        Raises:
            RunnerBroken: it does not run.
        """
        if self._runner is None:
            return
        try:
            same = _same_states(self._runner, steps)
        except Exception as error:
            raise RunnerBroken(f"the prefill graph fails ({type(error).__name__}: {error})") from error
        if not same:
            logger.warning("the prefill graph and the step graph differ on this machine; prompts are fed step by step")
            self._runner = None

    def join(self, row: int, sequence: Sequence) -> None:
        """Note a sequence that has got its row, if what it has to eat is long enough."""
        left = _left_to_steps(sequence) if self._runner is not None else None
        if left is not None and self._table.filled[row] + self._table.unfilled[row] - left >= MIN_TOKENS:
            self._left[sequence] = left

    def forget(self, sequence: Sequence) -> None:
        """A sequence ends."""
        self._left.pop(sequence, None)

    def advance(self, running: list[Sequence], refill: Callable[[int], None]) -> tuple[int, float]:
        """Take the first prompts forward, as far as may be between two steps.

        Args:
            running: the sequence in each row.
            refill: puts a prompt's next ids into a row that has eaten what it had queued.

        Returns:
            How many ids were eaten, and the seconds it took.
        """
        started = self._clock()
        budget = MAX_TOKENS_ALONE if len(self._left) == len(running) else MAX_TOKENS
        eaten, table = 0, self._table
        while budget - eaten >= MAX_ROWS and (chosen := self._choose(running)):
            rows: Rows = np.array(list(chosen), np.intp)
            length = min(*chosen.values(), (budget - eaten) // len(chosen))
            eaten += self._take(rows, length, running)
            for row in rows[(table.cursor[rows] == table.filled[rows]) & (table.unfilled[rows] > 0)].tolist():
                refill(row)
        return eaten, self._clock() - started

    def _choose(self, running: list[Sequence]) -> dict[int, int]:
        """The rows whose turn it is, and how many ids each may eat of those it has queued."""
        table, chosen = self._table, dict[int, int]()
        for sequence, left in list(self._left.items()):
            row = running.index(sequence)
            queued = int(table.filled[row] - table.cursor[row])
            ahead = queued + int(table.unfilled[row]) - left
            if ahead <= 0:
                del self._left[sequence]
                continue
            chosen[row] = min(queued, ahead)
            if len(chosen) == MAX_ROWS:
                break
        return chosen

    def _take(self, rows: Rows, length: int, running: list[Sequence]) -> int:
        """Let rows eat their next ids. A row whose ids the runner fails on has eaten none and is left to steps."""
        table = self._table
        ids = table.pending[rows[:, None], table.cursor[rows, None] + np.arange(length)]  # [b, T]
        assert self._runner is not None
        try:
            after = self._runner(ids, self._pool.gather(rows))
        except Exception:
            if len(rows) == 1:
                self.forget(running[rows[0]])
                return 0
            return sum(self._take(rows[place : place + 1], length, running) for place in range(len(rows)))
        self._pool.scatter(rows, after)
        table.eat(rows, ids)
        return int(ids.size)


def _left_to_steps(sequence: Sequence) -> int | None:
    """How many of a prompt's last ids need steps, for what the model says after them; None where all do."""
    readout = sequence.readout
    if sequence.sampling is not None:
        return 1
    if readout is not None and readout.targets is None and readout.columns is None:
        return readout.last
    return None


def _same_states(prefill: PrefillRunner, runner: Runner, *, seed: int = 0) -> bool:
    """Whether both leave the same bits after random ids. It raises whatever the runtime raises."""
    random = np.random.default_rng(seed)
    rows, lengths = 3, (1, 2, MIN_PIECES * PIECE + 3)  # the last one by several graphs at once
    ids = random.integers(0, runner.output_size, (rows, sum(lengths)))
    before, after = zeros(runner.states, rows), zeros(runner.states, rows)
    outputs = np.zeros((rows, runner.output_size), np.float32)
    many: Mapping[str, Tensor] = before
    start = 0
    for length in lengths:
        many = prefill(ids[:, start : start + length], many)
        start += length
    for column in ids.T:
        runner.bind(StepArrays(np.ascontiguousarray(column), before, {}, after, outputs, None))()
        before, after = after, before
    return all(np.asarray(many[name]).tobytes() == part.tobytes() for name, part in before.items())
