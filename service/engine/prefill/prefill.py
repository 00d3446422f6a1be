"""Long prompts and histories taken many ids forward in one call, before their sequences join the batch.

Whoever has a long prompt waits for its row while the prompt is consumed, beside the steps of the others where there is
a thread for it (thread.py), up to the ids whose outputs somebody wants: those are left to steps. What the calls leave
is what steps would have left, bit for bit, so nobody can tell from a result how a prompt was cut.

Axes: b sequences that are taken forward together, T ids of each.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from carousel.service.engine.device import Tensor
from carousel.service.engine.parameters import Array, State
from carousel.service.engine.port import Request
from carousel.service.engine.prefill.runner import MIN_PIECES, PIECE
from carousel.service.engine.runner import PrefillRunner, Runner, StepArrays, StepPorts
from carousel.service.engine.session import RunnerBroken

logger = logging.getLogger("carousel.engine")

MAX_TOKENS = 32
"""Ids of all sequences together before whoever consumes them looks up again, while others are in steps."""

MAX_TOKENS_ALONE = 512
"""Likewise while nobody is: then it is only who joins or leaves that waits."""

MAX_ROWS = 8
"""Sequences in one call, first come first served. With eight a token costs a third of what it costs with one; with
sixteen hardly less than with eight. No call begins with less of the budget left: each consumes at least one id."""

MIN_TOKENS = 3
"""A prompt with less to consume is left to steps. At three a call costs about what it saves, and the first token comes
after one step instead of four."""


@dataclass(eq=False, slots=True)
class _Prompt:
    """One that is on its way. Belongs to who holds the lock."""

    id: int
    request: Request
    batch: bool
    end: int
    """Up to which id it is taken forward: the others are left to steps."""
    consumed: int
    state: State | None
    """After so many ids; None for zeros."""
    wanted: frozenset[int]
    checkpoints: dict[int, State]


class Arrival(NamedTuple):
    """How far a prompt has come."""

    consumed: int
    """Ids."""
    state: State | None
    """After them; None for zeros."""
    checkpoints: Mapping[int, State]
    """The states that were asked for on the way."""


class Prefill:
    """Who has a long prompt, and how they get through it. Any thread may call; calls of the runner take turns.

    A prompt that has come as far as it shall lies ready until it is taken: nobody else knows how far it is.

    Args:
        runner: runs the prefill graph; None where there is none: then all is left to steps.
        ports: what a step takes and gives.
    """

    def __init__(self, runner: PrefillRunner | None, ports: StepPorts) -> None:
        self._runner = runner
        self._ports = ports
        self.refusal: str | None = None
        """Why `check` has done without the prefill graph."""
        self._turn = threading.Lock()
        """Held during a call of the runner."""
        self._lock = threading.Lock()
        """Of all that follows."""
        self._queue: dict[int, _Prompt] = {}
        """Who is to be taken forward, by id, in order of arrival."""
        self._arrived: dict[int, Arrival] = {}
        """Who need wait no longer, by id."""
        self._consumed = 0
        self.consume_beside: Callable[[], None] | None = None
        """Has prompts consumed beside the steps; None where `consume` does it between them."""

    @property
    def pending(self) -> bool:
        """Whether there is anything to consume."""
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

    @property
    def says(self) -> bool:
        """Whether `steps` can be called."""
        return self._runner is not None and self._runner.says

    def steps(self, fed: Mapping[str, Array], states: State) -> tuple[State, Mapping[str, Array]]:
        """See PrefillRunner."""
        with self._turn:
            assert self._runner is not None
            return self._runner.steps(fed, states)

    def begin(self, id: int, request: Request, *, batch: bool = False) -> bool:
        """Queue a request that is to join, if what it has to consume is long enough. A second time nothing happens.

        Returns:
            Whether its joining has to wait until it has arrived.
        """
        with self._lock:
            if id in self._queue or id in self._arrived:
                return True
            left = request.head.left_to_steps
            if self._runner is None or left is None or len(request.prompt) - request.consumed - left < MIN_TOKENS:
                return False
            state = None if request.snapshot is None else request.snapshot.state
            end, wanted = len(request.prompt) - left, request.wanted
            prompt = _Prompt(id, request, batch, end, request.consumed, state, wanted, {})
            self._queue[id] = prompt
            self._note(prompt)
            return True

    def withdraw(self, id: int) -> Arrival | None:
        """Forget a request, whatever is being consumed; how far it had come, if it was ever queued."""
        with self._lock:
            self._leave(id)
            return self._arrived.pop(id, None)

    def take_arrived(self, known: Container[int]) -> Mapping[int, Arrival]:
        """Those of these ids that need wait no longer: each is told once."""
        if not self._arrived:  # looked at without the lock: who comes now is taken before the next step
            return {}
        with self._lock:
            taken = {id: arrival for id, arrival in self._arrived.items() if id in known}
            for id in taken:
                del self._arrived[id]
        return taken

    def consume(self, *, busy: bool) -> bool:
        """Take prompts forward as far as may be before a step, or have it done beside it. Whether it was done here.

        Args:
            busy: whether anybody is in steps.
        """
        if busy and self.consume_beside is not None:
            self.consume_beside()
            return False
        return self.advance(MAX_TOKENS if busy else MAX_TOKENS_ALONE)

    def advance(self, budget: int) -> bool:
        """Take the first prompts forward by so many ids, or fewer. False where there was nothing to do."""
        consumed, called = 0, False
        with self._turn:
            while budget - consumed >= MAX_ROWS and (chosen := self._choose()):
                consumed += self._take([*chosen], min(*chosen.values(), (budget - consumed) // len(chosen)))
                called = True
        return called

    def take_consumed(self) -> int:
        """How many ids were consumed since somebody asked."""
        with self._lock:
            consumed, self._consumed = self._consumed, 0
        return consumed

    def give_up(self) -> None:
        """Leave all to steps, from now on."""
        with self._lock:
            self._runner = None
            for id in [*self._queue]:
                self._leave(id)

    def _choose(self) -> dict[_Prompt, int]:
        """Whose turn it is, and how many ids each may consume."""
        with self._lock:
            first = sorted(self._queue.values(), key=lambda prompt: prompt.batch)[:MAX_ROWS]
            return {prompt: self._ahead(prompt) for prompt in first}

    def _ahead(self, prompt: _Prompt) -> int:
        """How many ids there are up to the next checkpoint, or up to those that are left to steps."""
        return (
            min((at for at in prompt.wanted if prompt.consumed < at < prompt.end), default=prompt.end) - prompt.consumed
        )

    def _take(self, prompts: list[_Prompt], length: int) -> int:
        """Let prompts' next ids be consumed. One whose ids the runner fails on has come no further and is left to
        steps."""
        with self._lock:
            fed = self._fed(prompts, length)
            rows = [self._state(one) for one in prompts]
            runner = self._runner
        if runner is None:  # given up meanwhile
            return 0
        try:
            after = runner(fed, {name: np.stack([row[name] for row in rows]) for name in self._ports.states})
            left = {name: np.asarray(after[name]) for name in self._ports.states}
        except Exception:
            if len(prompts) == 1:
                with self._lock:
                    self._leave(prompts[0].id)
                return 0
            return sum(self._take([one], length) for one in prompts)
        with self._lock:
            self._consumed += len(prompts) * length
            for place, prompt in enumerate(prompts):
                if prompt.id in self._queue:  # else it was withdrawn meanwhile
                    self._move_on(prompt, length, {name: array[place].copy() for name, array in left.items()})
        return len(prompts) * length

    def _move_on(self, prompt: _Prompt, length: int, state: State) -> None:
        prompt.consumed += length
        prompt.state = state
        self._note(prompt)
        if prompt.consumed == prompt.end:
            self._leave(prompt.id)

    def _leave(self, id: int) -> None:
        prompt = self._queue.pop(id, None)
        if prompt is not None:
            self._arrived[id] = Arrival(prompt.consumed, prompt.state, prompt.checkpoints)

    def _note(self, prompt: _Prompt) -> None:
        if prompt.consumed in prompt.wanted:
            prompt.checkpoints[prompt.consumed] = self._state(prompt)

    def _state(self, prompt: _Prompt) -> State:
        """One row of every state."""
        if prompt.state is not None:
            return prompt.state
        return self._ports.blank

    def _fed(self, prompts: list[_Prompt], length: int) -> Mapping[str, Array]:
        """So many steps of each prompt, by input. [b, T, ...] each"""
        feeds = self._ports.head.feeds
        if feeds is not None:
            return {feeds: np.stack([one.request.prompt[one.consumed : one.consumed + length] for one in prompts])}
        return {
            name: np.stack([one.request.inputs[name][one.consumed : one.consumed + length] for one in prompts])
            for name in self._ports.inputs
        }


def _same_states(prefill: PrefillRunner, runner: Runner, *, seed: int = 0) -> bool:
    """Whether both leave the same bits after random ids, and say the same. It raises whatever the runtime raises."""
    random, ports = np.random.default_rng(seed), runner.ports
    size = ports.id_count
    # One sequence alone, as many as there may be, and some whose ids several graphs consume at once.
    for rows, lengths in ((1, (1, 2)), (MAX_ROWS, (1, 2)), (3, (1, 2, MIN_PIECES * PIECE + 3))):
        fed = {
            name: _random(random, (rows, sum(lengths), *spec.shape), spec.dtype, size)
            for name, spec in ports.inputs.items()
        }
        arrays = StepArrays.of(ports, rows)
        many: Mapping[str, Tensor] = arrays.before
        said: list[Mapping[str, Array]] = []
        start = 0
        for length in lengths:
            piece = {name: array[:, start : start + length] for name, array in fed.items()}
            if prefill.says:
                many, told = prefill.steps(piece, {name: np.asarray(array) for name, array in many.items()})
                said += [{name: array[:, place] for name, array in told.items()} for place in range(length)]
            else:
                many = prefill(piece, many)
            start += length
        for place in range(sum(lengths)):
            for name, array in fed.items():
                arrays.inputs[name][:] = array[:, place]
            runner.bind(arrays)()
            if said and any(array.tobytes() != said[place][name].tobytes() for name, array in arrays.outputs.items()):
                return False
            arrays = replace(arrays, before=arrays.after, after=arrays.before)
        if any(np.asarray(many[name]).tobytes() != np.asarray(part).tobytes() for name, part in arrays.before.items()):
            return False
    return True


def _random(random: np.random.Generator, shape: tuple[int, ...], dtype: str, end: int) -> Array:
    """Numbers for an input: ids below `end`, where it takes no floats."""
    if np.dtype(dtype).kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, end, shape).astype(dtype)
