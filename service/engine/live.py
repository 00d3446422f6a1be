"""Sequences that are fed while they live, and park their states while they have nothing to consume.

A request has its row until it ends. A live sequence has a place in arrays of its own and comes to the batch for the
steps that it is fed: a step gathers those who have any behind the rows of requests, and scatters what it leaves. So
idle ones cost memory and no row, and more than there are rows left take turns.

Axes: n rows of requests, k live sequences in a step, m steps that are fed together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.parameters import Array, FinishReason, LiveParameters, State
from carousel.service.engine.port import Ended, Request, Snapshot
from carousel.service.engine.prefill.prefill import Prefill
from carousel.service.engine.rows.plan import Rows
from carousel.service.engine.rows.table import NOT_FINITE, RowEnds
from carousel.service.engine.runner import StepPorts
from carousel.service.engine.states.pool import StatePool, StateSpec, zeros
from carousel.service.engine.steps import Steps

NO_IDS = np.zeros(0, np.int64)
AT_ONCE = 8
"""Steps that are taken before anybody else may join, at most: who comes meanwhile waits for them."""

IN_A_CALL = 64
"""Likewise, where a graph takes them in one call."""

FEW = 16
"""Places that are there at first; as many again whenever they are taken."""

SHARE = 16
"""A step has a row for live sequences for every so many of requests: they get on when all of those are taken."""


def step_rows(max_rows: int) -> int:
    """Rows of a step at most, where requests may have max_rows of them."""
    return max_rows + -(-max_rows // SHARE)


@dataclass(eq=False, repr=False, slots=True)
class _Live:
    id: int
    place: int
    outputs: tuple[str, ...]
    each: bool
    keeps: bool
    fed: deque[Fed] = field(default_factory=deque)
    """What is to be consumed; the first of it perhaps in part."""
    cursor: int = 0
    """Steps of the first that are taken."""
    before: State | None = None
    """The state before the first, where that has more steps than are taken at once: if one fails, none was taken."""
    told: list[Array] = field(default_factory=list)
    """What its steps have said so far, where each is to be told. [m, ...] each"""
    ends: bool = False
    """Whether nothing more is fed."""


class LiveSequences:
    """All of an engine's.

    Args:
        ports: what a step takes and gives.
        steps: runs them.
        pool: holds the rows of a step.
        rows: of a step, at most (step_rows); they have those behind the requests'.
        many: takes many steps in a call, where it can.
        finished: gets who has ended, by id.
    """

    def __init__(
        self,
        ports: StepPorts,
        steps: Steps,
        pool: StatePool,
        rows: int,
        many: Prefill,
        finished: list[tuple[int, Ended]],
    ) -> None:
        self._steps = steps
        self._pool = pool
        self._most = rows
        self._many = many
        self._finished = finished
        self._blank = ports.blank
        self._parked = _Parked(ports.states), _Parked(ports.context)
        self._free: list[int] = []
        self._lives: dict[int, _Live] = {}
        self._asked: Counter[str] = Counter()
        """How many of them ask for each output."""
        self._ready: deque[_Live] = deque()
        """Who has something to consume, in turn."""
        self._taken: list[_Live] = []
        """Who is in the step. [k]"""
        self._rows = slice(0, 0)
        self._places: Rows = np.zeros(0, np.intp)
        self._length = 1
        """Steps that they take before they leave."""
        self._at = 0
        """Which of these is next."""
        self._given: dict[str, list[Array] | Array] = {}
        """What they are fed in these, by input. [k, length, ...] each"""
        self._said: dict[str, Array] = {}
        """What was said of them, by output. [k, length, ...] each"""
        self._left: State | None = None
        """Their states after these, where they were taken in one call. [k, ...] each"""
        self._failed: dict[int, str] = {}
        """Whose step failed, by place among them, and why."""
        self._floats = {name for name, spec in ports.outputs.items() if np.issubdtype(spec.dtype, np.inexact)}

    @property
    def ready(self) -> bool:
        """Whether anybody has something to consume."""
        return bool(self._ready)

    def open(self, id: int, request: Request, head: LiveParameters) -> None:
        """Begin a sequence."""
        states, context = self._parked
        if not self._free:
            self._free = [*reversed(states.grow())]
            context.grow()
        place = self._free.pop()
        states.write(place, self._blank if request.snapshot is None else request.snapshot.state)
        context.write(place, request.context)
        self._lives[id] = _Live(id, place, head.outputs, head.each, request.keep_state)
        self._asked.update(head.outputs)

    def feed(self, id: int, fed: Fed | None) -> None:
        """Queue steps; None ends the sequence behind them. Nothing happens if it has ended."""
        live = self._lives.get(id)
        if live is None:
            return
        if fed is None:
            live.ends = True
            if not live.fed:
                self._close(live, FinishReason.STOP)
            return
        live.fed.append(fed)
        if len(live.fed) == 1:
            self._ready.append(live)

    def cancel(self, id: int) -> None:
        """End a sequence, as it is after the last that was answered."""
        live = self._lives.get(id)
        if live is not None:
            if live.fed:
                self._ready.remove(live)
                self._undo(live)
            self._close(live, FinishReason.CANCELLED)

    def fail_all(self, detail: str) -> None:
        """End all."""
        self._ready.clear()
        for live in list(self._lives.values()):
            self._close(live, FinishReason.FAILED, detail)

    def enter(self, n: int) -> tuple[int, int]:
        """Before a step: the next in turn get the rows from n on. Returns how many, and for how many steps.

        These are 1 where a request has a row, else as many as all have been fed, up to AT_ONCE or IN_A_CALL.
        """
        ready = self._ready
        k = min(len(ready), self._most - n)
        taken = self._taken = [ready.popleft() for _ in range(k)]
        if not k:
            return 0, 1
        fed = [live.fed[0] for live in taken]
        left = [each.steps - live.cursor for each, live in zip(fed, taken, strict=True)]
        most = 1 if n else IN_A_CALL if self._many.says else AT_ONCE
        self._failed, self._at, length = {}, 0, min(most, *left)
        self._rows, self._places, self._length = slice(n, n + k), np.array([live.place for live in taken]), length
        states, context = self._parked
        self._pool.load(self._rows, states.arrays, context.arrays, self._places)
        self._given = {}
        for name in self._steps.inputs:
            rows = [each.inputs[name] for each in fed]
            if len(max(rows, key=len)) > length:
                rows = [row[live.cursor : live.cursor + length] for row, live in zip(rows, taken, strict=True)]
            self._given[name] = rows if length == 1 else np.stack(rows)
        self._write()
        self._said = {
            name: np.empty((k, length, *array.shape[1:]), array.dtype)
            for name, array in self._steps.outputs.items()
            if self._asked[name]
        }
        for live in taken:
            if not live.cursor and live.fed[0].steps > length:
                self._begin(live)
        return k, length

    def run_in_a_call(self) -> bool:
        """Take all these steps, of none but their rows, at once; False where they must be taken one by one."""
        if not self._many.says:
            return False
        try:
            self._left, said = self._many.steps(cast(dict[str, Array], self._given), self._pool.host(self._rows))
        except Exception:  # in whose rows it lies, single steps tell
            return False
        self._said = {name: said[name] for name in self._said}
        return True

    def goes_on(self, failures: RowEnds) -> None:
        """Between two of these steps, of none but their rows: note what the last has said, and feed the next."""
        self._note(0, failures)
        self._at += 1
        self._write()

    def _note(self, n: int, failures: RowEnds) -> None:
        """What a step has said. Failures lose the rows behind n."""
        for name, said in self._said.items():
            said[:, self._at] = self._steps.outputs[name][self._rows]
        if failures:
            for row in [row for row in failures if row >= n]:
                self._failed.setdefault(row - n, failures.pop(row)[1])

    def _write(self) -> None:
        for name, array in self._steps.inputs.items():
            given = self._given[name]
            if isinstance(given, list):
                np.concatenate(given, out=array[self._rows])
            else:
                array[self._rows] = given[:, self._at]

    def leave(self, n: int, failures: RowEnds) -> list[tuple[int, Answer]]:
        """After the last of these steps: park the states, and tell what came of what was consumed.

        Failures lose the rows behind n.
        """
        taken, answers = self._taken, list[tuple[int, Answer]]()
        left, self._left = self._left, None
        if left is None:
            self._note(n, failures)
            left = self._pool.host(self._rows)
        wrong, length = self._not_finite() | self._failed, self._length
        if wrong:
            sound = np.array([row for row in range(len(taken)) if row not in wrong], np.intp)
            self._parked[0].put(self._places[sound], {name: array[sound] for name, array in left.items()})
        else:
            self._parked[0].put(self._places, left)
        said = {name: list(array) for name, array in self._said.items()}
        for row, live in enumerate(taken):
            answer: Answer | None
            if not wrong and live.fed[0].steps == length and (live.each or length == 1):
                answer = Answer(tuple([said[name][row] for name in live.outputs]))
            else:
                answer = self._answer(live, row, wrong.get(row))
            if answer is not None:
                answers.append((live.id, answer))
                live.fed.popleft()
            if live.fed:
                self._ready.append(live)
            elif live.ends:
                self._close(live, FinishReason.STOP)
        self._taken = []
        return answers

    def _answer(self, live: _Live, row: int, wrong: str | None) -> Answer | None:
        """What came of the first that it was fed; None while that has more steps."""
        if wrong is not None:
            self._undo(live)
            return Answer((), wrong)
        said, steps = [self._said[name][row] for name in live.outputs], live.fed[0].steps
        if steps > self._length:
            for array, part in zip(live.told, said, strict=False):
                array[live.cursor : live.cursor + self._length] = part
            live.cursor += self._length
            if live.cursor < steps:
                return None
            live.cursor, live.before = 0, None
            if live.each:
                said, live.told = live.told, []
        return Answer(tuple(said if live.each else [part[-1:] for part in said]))

    def _not_finite(self) -> dict[int, str]:
        """Whose asked outputs are not, by place."""
        wrong = {}
        for name in self._floats & self._said.keys():
            finite = np.isfinite(self._said[name])
            if not finite.all():
                for row in np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1)).tolist():
                    if name in self._taken[row].outputs:
                        wrong[row] = NOT_FINITE
        return wrong

    def _begin(self, live: _Live) -> None:
        """The first of more steps than are taken at once."""
        live.before = self._parked[0].copy(live.place)
        outputs, steps = self._steps.outputs, live.fed[0].steps
        if live.each:
            live.told = [np.zeros((steps, *outputs[name].shape[1:]), outputs[name].dtype) for name in live.outputs]

    def _undo(self, live: _Live) -> None:
        """Take back what was consumed of the first that it was fed."""
        if live.before is not None:
            self._parked[0].write(live.place, live.before)
        live.cursor, live.before, live.told = 0, None, []

    def _close(self, live: _Live, reason: FinishReason, detail: str = "") -> None:
        snapshot = None
        if live.keeps and reason is not FinishReason.FAILED:
            snapshot = Snapshot(self._parked[0].copy(live.place), NO_IDS)
        self._free.append(live.place)
        del self._lives[live.id]
        self._asked.subtract(live.outputs)
        self._finished.append((live.id, Ended(reason, detail, snapshot)))


class _Parked:
    """Arrays of one row a live sequence, which grow."""

    def __init__(self, specs: Mapping[str, StateSpec]) -> None:
        self._specs = specs
        self.arrays = zeros(specs, 0)
        self._count = 0

    def grow(self) -> range:
        """Twice as many rows; which are new."""
        old, self._count = self._count, max(FEW, 2 * self._count)
        before, self.arrays = self.arrays, zeros(self._specs, self._count)
        for name, array in before.items():
            self.arrays[name][:old] = array
        return range(old, self._count)

    def write(self, place: int, row: Mapping[str, Array] | None) -> None:
        """A row; None is zeros."""
        for name, array in self.arrays.items():
            array[place] = 0 if row is None else row[name]

    def put(self, places: Rows, rows: Mapping[str, Array]) -> None:
        """Rows, each in its place. [k, ...] each"""
        for name, array in self.arrays.items():
            array[places] = rows[name]

    def copy(self, place: int) -> dict[str, Array]:
        """Of a row."""
        return {name: np.array(array[place]) for name, array in self.arrays.items()}
