"""The engine's loop body: who joins, one step of everyone, what heads make of it, who leaves.

Axes: n active rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.feed import Feed
from carousel.service.engine.heads.head import Stepped
from carousel.service.engine.heads.registry import open_heads
from carousel.service.engine.live import LiveSequences, step_rows
from carousel.service.engine.parameters import FinishReason, Ids, LiveParameters
from carousel.service.engine.port import Counts, Ended, Request, Snapshot, StepReport
from carousel.service.engine.prefill.prefill import Arrival, Prefill
from carousel.service.engine.rows.plan import Mask
from carousel.service.engine.rows.table import RowEnds, RowTable
from carousel.service.engine.runner import PrefillRunner, Runner
from carousel.service.engine.scheduler import Scheduler
from carousel.service.engine.sequence import Joined, Sequence, StepOutput, TokenBatch
from carousel.service.engine.states.pool import HostPool, StatePool
from carousel.service.engine.steps import Steps


@dataclass(slots=True)
class Begun:
    """A step whose rows are chosen and fed.

    Args:
        started: of the engine's clock.
        n: rows of requests.
        live: rows of live sequences, behind them.
        length: steps that these rows take in a row.
        ids: what rows of requests consume. <int64>[n]
        prefill_seconds: for how long prompts were consumed before it.
    """

    started: float
    n: int
    live: int
    length: int
    ids: Ids | None
    prefill_seconds: float
    failures: RowEnds = field(default_factory=dict)
    """Rows that failed, and why, of those that are still of interest."""
    runner_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """All."""
        return self.n + self.live


class EngineCore:
    """Requests in, events out, one step at a time. Not thread-safe: one thread owns it.

    Args:
        runner: runs the step graph.
        max_rows: rows of requests that may run at once.
        clock: seconds, monotonic.
        prefill: runs the prefill graph; None where there is none, and every id is fed to a step.
        pool: holds the runner's states, step_rows of them; None for arrays on the host.
    """

    def __init__(
        self,
        runner: Runner,
        max_rows: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        prefill: PrefillRunner | None = None,
        pool: StatePool | None = None,
    ) -> None:
        ports, rows = runner.ports, step_rows(max_rows)
        self.scheduler = Scheduler(max_rows)
        self.prefill = Prefill(prefill, ports)
        self._runner = runner
        self._clock = clock
        self._pool: StatePool = pool or HostPool(ports.states, ports.context, rows)
        self._table = RowTable(max_rows)
        self._steps = Steps(runner, self._pool, rows)
        self._blank = ports.blank if ports.initial else None
        """What sequences begin with, where that is not zeros."""
        fed = np.zeros(max_rows, np.int64) if ports.head.feeds is None else self._steps.inputs[ports.head.feeds]
        self._fed = cast(Ids, fed)
        self._feed = Feed(self._steps.inputs, max_rows) if ports.head.feeds is None and ports.inputs else None
        self._heads = open_heads(ports, self._table, self._pool, max_rows)
        self._finished: list[tuple[int, Ended]] = []
        # Not a method of this: a circle would keep the graphs of a closed engine until the garbage is collected.
        self._live = LiveSequences(ports, self._steps, self._pool, rows, self.prefill, self._finished)
        self._sequences: dict[int, Sequence] = {}
        """All that wait or run, by id."""
        self._joined: list[Joined] = []

    def add(self, id: int, request: Request, *, batch: bool = False) -> None:
        """Queue a request; it joins at the next step with a free row, or with as many as its beam is wide.

        Args:
            id: of no other that waits or runs.
            request: what to do.
            batch: whether it waits for as long as any waits that is not.

        Raises:
            ValueError: its beam is wider than the engine.
        """
        if isinstance(request.head, LiveParameters):
            self._live.open(id, request, request.head)
            self._joined.append(Joined(id, self._clock(), 0))
            return
        sequence = Sequence(id, request, batch)
        self.scheduler.add(sequence)
        self._sequences[id] = sequence
        sequence.ahead = self.prefill.begin(id, request, batch=batch)

    def feed(self, id: int, fed: Fed | None) -> None:
        """Queue steps of a live sequence; None ends it behind them. Nothing happens if it has ended already."""
        self._live.feed(id, fed)

    def cancel(self, id: int) -> None:
        """End a request before the next step; nothing happens if it has ended already."""
        sequence = self._sequences.get(id)
        if sequence is None:
            self._live.cancel(id)
            return
        if self.scheduler.withdraw(sequence):
            self._withdrawn(sequence, FinishReason.CANCELLED)
        else:
            self._finish(self.scheduler.running.index(sequence), FinishReason.CANCELLED)

    @property
    def in_steps(self) -> bool:
        """Whether rows are in use."""
        return bool(self.scheduler.running) or self._live.ready

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run and nothing to tell."""
        return not (self._sequences or self._finished or self._joined or self._live.ready)

    @property
    def feeds_alone(self) -> bool:
        """Whether there are no requests, and so nothing but live sequences to step."""
        return not self._sequences

    def step(self) -> StepOutput:
        """Let waiting requests join, take every row one id forward, and tell what came of it.

        Raises:
            RunnerBroken: the step failed for every row, and for a row of zeros too.
        """
        begun = self.begin()
        if begun is None:
            return self.nothing()
        self.run(begun)
        return self.finish(begun)

    def nothing(self) -> StepOutput:
        """What there is to tell where nothing is stepped."""
        return self._told(None, None, [])

    def begin(self) -> Begun | None:
        """The first third of a step: who joins, and what is fed. None where there is nothing to step."""
        started = self._clock()
        prefill_seconds = self._schedule(started)
        n, live, length = len(self.scheduler.running), 0, 1
        if self._live.ready:
            live, length = self._live.enter(n)
        if not n + live:
            return None
        ids = self._next_ids(n) if n else None
        return Begun(started, n, live, length, ids, prefill_seconds)

    def run(self, begun: Begun) -> None:
        """The second third. Another thread may do it, and nothing else is asked of the engine meanwhile.

        Raises:
            RunnerBroken: the step failed for every row, and for a row of zeros too.
        """
        if begun.length > 1:
            started = self._clock()
            if self._live.run_in_a_call():
                begun.runner_seconds = self._clock() - started
                return
        for left in reversed(range(begun.length)):
            started = self._clock()
            begun.failures = self._steps.run(begun.rows)
            begun.runner_seconds += self._clock() - started
            if left:  # then there are live sequences alone
                self._live.goes_on(begun.failures)

    def finish(self, begun: Begun) -> StepOutput:
        """The last third: what came of it."""
        n, steps = begun.n, begun.length
        answers = self._live.leave(n, begun.failures) if begun.live else []
        prompt_rows, batch, added = begun.live, None, 0
        if begun.ids is not None:
            prompt_rows += int(np.count_nonzero(self._table.added[:n] == 0))
            done = self._advance(n)
            stepped = Stepped(begun.ids, self._steps.outputs, done, self.scheduler.running, begun.failures)
            for head in self._heads.values():
                if head.count:
                    head.after_step(stepped)
            self._let_go(stepped)
            batch, added = stepped.batch, stepped.added
        report = StepReport(
            rows=begun.rows,
            prompt_tokens=prompt_rows,
            consumed_ahead=self.prefill.take_consumed(),
            generated_tokens=added,
            step_seconds=(self._clock() - begun.started) / steps,
            runner_seconds=(begun.runner_seconds + begun.prefill_seconds) / steps,
            steps=steps,
        )
        return self._told(batch, report, answers)

    def fail_all(self, detail: str) -> StepOutput:
        """End every request, running and waiting."""
        while self.scheduler.running:
            self._finish(len(self.scheduler.running) - 1, FinishReason.FAILED, detail)
        for sequence in self.scheduler.withdraw_all():
            self._withdrawn(sequence, FinishReason.FAILED, detail)
        self._live.fail_all(detail)
        return self._told(None, None, [])

    def _schedule(self, now: float) -> float:
        """Let waiting sequences into free rows. Returns for how many seconds prompts were consumed meanwhile."""
        if not self.scheduler.anybody_waits:
            return 0.0
        self._join(now)
        if not self.prefill.pending or self._finished:  # which wait to be told
            return 0.0
        started = self._clock()
        if self.prefill.consume(busy=bool(self.scheduler.running)):
            self._join(now)
        return self._clock() - started

    def _join(self, now: float) -> None:
        for id, arrival in self.prefill.take_arrived(self._sequences).items():
            sequence = self._sequences[id]
            sequence.ahead = False
            _arrive(sequence, arrival)
        for rows, sequence in self.scheduler.admit():
            request = sequence.request
            self._joined.append(Joined(sequence.id, now, sequence.asked))
            for row in rows:
                self._pool.acquire(row, sequence.state or self._blank, request.context)
            sequence.state = None
            self._checkpoint(rows[0], sequence)
            self._table.acquire(rows[0], sequence)
            self._heads[type(request.head)].acquire(rows, sequence)

    def _next_ids(self, n: int) -> Ids:
        """What the rows of requests consume in a step, written where it is fed from."""
        ids = self._fed[:n]
        ids[:] = self._table.next_ids(n)
        if self._feed is not None:
            self._feed.write(ids, self.scheduler.running)
        return ids

    def _advance(self, n: int) -> Mask:
        """After it: which of these rows have nothing left to consume. <bool>[n]"""
        table = self._table
        table.advance(n)
        done = table.empty(n)
        if table.unfilled[:n].any():
            for row in np.flatnonzero(done & (table.unfilled[:n] > 0)).tolist():
                sequence = self.scheduler.running[row]
                self._checkpoint(row, sequence)
                table.fill(row, sequence)
            done = table.empty(n)
        return done

    def _checkpoint(self, row: int, sequence: Sequence) -> None:
        """Take a copy of the state, where one is asked for after as many ids."""
        if sequence.consumed in sequence.wanted and sequence.consumed not in sequence.checkpoints:
            sequence.checkpoints[sequence.consumed] = self._pool.snapshot(row)

    def _let_go(self, step: Stepped) -> None:
        """Free the rows of all who end with a step."""
        for row in sorted(step.ends, reverse=True):  # from the last on, so that no row moves before its turn
            self._finish(row, *step.ends[row])
        for sequence, reason, detail in step.over:
            self._finish(self.scheduler.running.index(sequence), reason, detail)

    def _finish(self, row: int, reason: FinishReason, detail: str = "") -> None:
        """End the sequence whose (first) row it is: free its rows, then tell."""
        sequence = self.scheduler.running[row]
        request, pending = sequence.request, self._table.pending_ids(row)
        snapshot = None
        if request.keep_state and request.head.resumable and reason is not FinishReason.FAILED:
            rest = np.concatenate([pending, request.prompt[sequence.consumed :]])
            snapshot = sequence.prompt_snapshot or Snapshot(self._pool.snapshot(row), rest)
        added, result = self._heads[type(request.head)].end(row, sequence)
        counts = Counts(_prompt_count(sequence, 0 if added else len(pending)), added)
        for each in self.scheduler.rows_of(row):
            last = self.scheduler.remove(each)
            self._pool.release(each, last)
            self._table.release(each, last)
            if self._feed is not None:
                self._feed.release(each, last)
            for head in self._heads.values():
                if head.count:
                    head.release(each, last)
        self._forget(sequence, Ended(reason, detail, snapshot, result, counts, sequence.checkpoints))

    def _withdrawn(self, sequence: Sequence, reason: FinishReason, detail: str = "") -> None:
        """End a sequence that waited."""
        request, arrival = sequence.request, self.prefill.withdraw(sequence.id)
        if arrival is not None:
            _arrive(sequence, arrival)
        snapshot = None
        if request.keep_state and request.head.resumable and reason is not FinishReason.FAILED:
            snapshot = Snapshot(
                sequence.state or self._blank or self._pool.blank(), request.prompt[sequence.consumed :]
            )
        counts = Counts(_prompt_count(sequence, 0))
        self._forget(sequence, Ended(reason, detail, snapshot, None, counts, sequence.checkpoints))

    def _forget(self, sequence: Sequence, ended: Ended) -> None:
        del self._sequences[sequence.id]
        self._finished.append((sequence.id, ended))

    def _told(
        self, batch: TokenBatch | None, report: StepReport | None, answers: list[tuple[int, Answer]]
    ) -> StepOutput:
        joined, self._joined = self._joined, []
        finished = [*self._finished]
        self._finished.clear()
        return StepOutput(joined, batch, finished, report, answers)


def _prompt_count(sequence: Sequence, pending: int) -> int:
    """How many ids of a prompt were consumed or weighed, of which so many still lie in its row."""
    prompt, behind = sequence.request.prompt, sequence.consumed - pending
    return len(prompt) if behind == len(prompt) - sequence.request.head.targets_only else behind


def _arrive(sequence: Sequence, arrival: Arrival) -> None:
    """A sequence's prompt has been consumed so far, ahead of its joining."""
    sequence.consumed = arrival.consumed
    sequence.state = arrival.state
    sequence.checkpoints.update(arrival.checkpoints)
