"""Long prompts and histories taken many ids forward in one call, before their sequences join the batch.

Whoever has a long prompt waits for its row while the prompt is eaten, beside the steps of the others where there is a
thread for it (prefill_thread.py), up to the ids whose outputs somebody wants: those are left to steps. What the calls
leave is what steps would have left, bit for bit, so nobody can tell from a result how a prompt was cut.

Axes: b sequences that are taken forward together, T ids of each.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from carousel.service.engine.device import Tensor
from carousel.service.engine.prefill.runner import MIN_PIECES, PIECE
from carousel.service.engine.runner import PrefillRunner, Runner, StepArrays
from carousel.service.engine.sequence import Array, Sequence, Snapshot
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.pool import StateSpec, zeros

logger = logging.getLogger("carousel.engine")

MAX_TOKENS = 32
"""Ids of all sequences together before whoever eats looks up again, while others are in steps."""

MAX_TOKENS_ALONE = 512
"""Likewise while nobody is: then it is only who joins or leaves that waits."""

MAX_ROWS = 8
"""Sequences in one call, first come first served. With eight a token costs a third of what it costs with one; with
sixteen hardly less than with eight. No call begins with less of the budget left: each eats at least one id."""

MIN_TOKENS = 3
"""A prompt with less to eat is left to steps. At three a call costs about what it saves, and the first token comes
after one step instead of four."""


class Prefill:
    """Who has a long prompt to eat, and how they get through it. Any thread may call; calls of the runner take turns.

    Args:
        runner: runs the prefill graph; None where there is none: then all is left to steps.
        states: the shape of each state, by name.
    """

    def __init__(self, runner: PrefillRunner | None, states: Mapping[str, StateSpec]) -> None:
        self._runner = runner
        self._states = states
        self.refusal: str | None = None
        """Why `check` has done without the prefill graph."""
        self._turn = threading.Lock()
        """Held during a call of the runner."""
        self._lock = threading.Lock()
        """Of all that follows, and of the marks of the sequences in the queue."""
        self._queue: dict[Sequence, int] = {}
        """Who is to be taken forward, in order of arrival, and how many of the last ids are left to steps."""
        self._eaten = 0
        self.eat_beside: Callable[[], None] | None = None
        """Has prompts eaten beside the steps; None where `eat` does it between them."""

    @property
    def pending(self) -> bool:
        """Whether there is anything to eat."""
        return bool(self._queue)

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
            self.refusal = "the prefill graph and the step graph differ on this machine; prompts are fed step by step"
            logger.warning("%s", self.refusal)
            self._runner = None

    def begin(self, sequence: Sequence) -> None:
        """Queue a sequence that is to join, if what it has to eat is long enough. A second time nothing happens."""
        with self._lock:
            if sequence.ahead is not None:
                return
            left = _left_to_steps(sequence) if self._runner is not None else None
            sequence.ahead = left is not None and len(sequence.prompt) - sequence.eaten - left >= MIN_TOKENS
            if left is not None and sequence.ahead:
                self._queue[sequence] = left
                self._look(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """Forget a sequence: its marks stay what they are, whatever is being eaten."""
        with self._lock:
            self._leave(sequence)

    def eat(self, *, busy: bool) -> bool:
        """Take prompts forward as far as may be before a step, or have it done beside it. Whether it was done here.

        Args:
            busy: whether anybody is in steps.
        """
        if busy and self.eat_beside is not None:
            self.eat_beside()
            return False
        return self.advance(MAX_TOKENS if busy else MAX_TOKENS_ALONE)

    def advance(self, budget: int) -> bool:
        """Take the first prompts forward by so many ids, or fewer. False where there was nothing to do."""
        eaten, called = 0, False
        with self._turn:
            while budget - eaten >= MAX_ROWS and (chosen := self._choose()):
                eaten += self._take([*chosen], min(*chosen.values(), (budget - eaten) // len(chosen)))
                called = True
        return called

    def take_eaten(self) -> int:
        """How many ids were eaten since somebody asked."""
        with self._lock:
            eaten, self._eaten = self._eaten, 0
        return eaten

    def give_up(self) -> None:
        """Leave all to steps, from now on."""
        with self._lock:
            self._runner = None
            for sequence in [*self._queue]:
                self._leave(sequence)

    def _choose(self) -> dict[Sequence, int]:
        """Whose turn it is, and how many ids each may eat."""
        with self._lock:
            first = sorted(self._queue, key=lambda sequence: sequence.batch)[:MAX_ROWS]
            return {sequence: self._ahead(sequence) for sequence in first}

    def _ahead(self, sequence: Sequence) -> int:
        """How many ids there are up to where the state is looked at, or up to those that are left to steps."""
        end = len(sequence.prompt) - self._queue[sequence]
        return next((look for look in sequence.looks if sequence.eaten < look < end), end) - sequence.eaten

    def _take(self, sequences: list[Sequence], length: int) -> int:
        """Let sequences eat their next ids. One whose ids the runner fails on has eaten none and is left to steps."""
        with self._lock:
            ids = np.stack([one.prompt[one.eaten : one.eaten + length] for one in sequences])  # [b, T]
            rows = [self._state(one) for one in sequences]
            runner = self._runner
        if runner is None:  # given up meanwhile
            return 0
        try:
            after = runner(ids, {name: np.stack([row[name] for row in rows]) for name in self._states})
            left = {name: np.asarray(after[name]) for name in self._states}
        except Exception:
            if len(sequences) == 1:
                self.withdraw(sequences[0])
                return 0
            return sum(self._take([one], length) for one in sequences)
        with self._lock:
            self._eaten += ids.size
            for place, sequence in enumerate(sequences):
                if sequence in self._queue:  # else it was withdrawn meanwhile
                    self._move_on(sequence, length, {name: array[place].copy() for name, array in left.items()})
        return int(ids.size)

    def _move_on(self, sequence: Sequence, length: int, state: Mapping[str, Array]) -> None:
        sequence.eaten += length
        sequence.asked -= length  # of its row
        sequence.snapshot = Snapshot(state, sequence.prompt[sequence.eaten :])
        self._look(sequence)
        if sequence.eaten == len(sequence.prompt) - self._queue[sequence]:
            self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if self._queue.pop(sequence, None) is not None:
            sequence.ahead = False

    def _look(self, sequence: Sequence) -> None:
        if sequence.eaten in sequence.looks:
            sequence.looked[sequence.eaten] = self._state(sequence)

    def _state(self, sequence: Sequence) -> Mapping[str, Array]:
        """One row of every state."""
        if sequence.snapshot is not None:
            return sequence.snapshot.state
        return {name: array[0] for name, array in zeros(self._states, 1).items()}


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
    random, ports = np.random.default_rng(seed), runner.ports
    (size,) = ports.outputs[ports.head.reads].shape
    # One sequence alone, as many as there may be, and some whose ids several graphs eat at once.
    for rows, lengths in ((1, (1, 2)), (MAX_ROWS, (1, 2)), (3, (1, 2, MIN_PIECES * PIECE + 3))):
        ids = random.integers(0, size, (rows, sum(lengths)))
        arrays = StepArrays.of(ports, rows)
        many: Mapping[str, Tensor] = arrays.before
        start = 0
        for length in lengths:
            many = prefill(ids[:, start : start + length], many)
            start += length
        for column in ids.T:
            arrays.inputs[ports.head.feeds][:] = column
            runner.bind(arrays)()
            arrays = replace(arrays, before=arrays.after, after=arrays.before)
        if any(np.asarray(many[name]).tobytes() != np.asarray(part).tobytes() for name, part in arrays.before.items()):
            return False
    return True
