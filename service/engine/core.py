"""The engine's loop body: who joins, one step of everyone, what came of it.

Axes: n active rows, O outputs of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from service.engine.plan import Doubles, Mask, Rows
from service.engine.rows import CHUNK, RowTable
from service.engine.runner import Runner, RunnerBroken, Step
from service.engine.sampler import Sampler
from service.engine.scheduler import Scheduler
from service.engine.sequence import (
    FinishEvent,
    FinishReason,
    Floats,
    Ids,
    Reading,
    Sequence,
    Snapshot,
    StepOutput,
    StepReport,
    TokenBatch,
)
from service.engine.state_pool import StatePool

NOT_FINITE = "the outputs were not finite"


class EngineCore:
    """Sequences in, events out, one step at a time. Not thread-safe: one thread owns it.

    Args:
        runner: runs the step graph.
        max_rows: sequences that may run at once.
        clock: seconds, monotonic.
    """

    def __init__(self, runner: Runner, max_rows: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.scheduler = Scheduler(max_rows)
        self._runner = runner
        self._clock = clock
        self._pool = StatePool(runner.states, max_rows)
        self._table = RowTable(max_rows, runner.output_size)
        self._sampler = Sampler(runner.output_size)
        self._ids = np.zeros(max_rows, np.int64)
        self._outputs = np.zeros((max_rows, runner.output_size), np.float32)
        self._bound: dict[tuple[int, bool], Step] = {}
        """Steps by number of rows and by which of the pool's two arrays is read."""
        self._finished: list[tuple[Sequence, FinishEvent]] = []

    def warm_up(self) -> None:
        """Run one row and all rows once, so that no client pays for the runtime's first allocations.

        Raises:
            RunnerBroken: the runner fails on rows of zeros.
        """
        for n in (1, self.scheduler.max_rows):
            self._probe(n)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it joins at the next step with a free row."""
        self.scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step; nothing happens if it has ended already."""
        row = self.scheduler.find(sequence)
        if row is not None:
            self._finish(row, FinishReason.CANCELLED)
        elif self.scheduler.withdraw(sequence):
            snapshot = None
            if sequence.keep_state:
                state = sequence.snapshot.state if sequence.snapshot else self._pool.blank()
                snapshot = Snapshot(state, sequence.prompt)
            self._finished.append((sequence, FinishEvent(FinishReason.CANCELLED, snapshot=snapshot)))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run and nothing to tell."""
        return not (self.scheduler.running or self.scheduler.waiting or self._finished)

    def step(self) -> StepOutput:
        """Let waiting sequences join, take every row one id forward, and tell what came of it.

        Raises:
            RunnerBroken: the step failed for every row, and for a row of zeros too.
        """
        started = self._clock()
        for row, sequence in self.scheduler.admit():
            self._pool.acquire(row, sequence.snapshot.state if sequence.snapshot else None)
            self._table.acquire(row, sequence)
            self._look(row, sequence)
            sequence.joined_at = started
        n = len(self.scheduler.running)
        batch, report = None, None
        if n:
            prompt_rows = self._table.generated[:n] == 0
            ids = self._ids[:n]
            ids[:] = self._table.next_ids(n)
            runner_started = self._clock()
            failures = self._run(n)
            runner_seconds = self._clock() - runner_started
            batch = self._digest(ids, failures)
            report = StepReport(
                rows=n,
                prompt_tokens=int(prompt_rows.sum()),
                generated_tokens=len(batch.tokens) if batch else 0,
                step_seconds=self._clock() - started,
                runner_seconds=runner_seconds,
            )
        return StepOutput(batch, self._take_finished(), report)

    def fail_all(self, detail: str) -> StepOutput:
        """End every sequence, running and waiting."""
        for row in reversed(range(len(self.scheduler.running))):
            self._finish(row, FinishReason.FAILED, detail)
        while self.scheduler.waiting:
            self._finished.append((self.scheduler.waiting.popleft(), FinishEvent(FinishReason.FAILED, detail)))
        return StepOutput(None, self._take_finished(), None)

    def _run(self, n: int) -> dict[int, str]:
        """One step of all rows. Returns the rows that failed, with the reason.

        A step that raises says nothing about which row it was; what it read is untouched, so each row is tried alone.
        """
        key = (n, self._pool.swapped)
        failures: dict[int, str] = {}
        try:
            step = self._bound.get(key)
            if step is None:
                step = self._bound[key] = self._bind(slice(0, n))
            step()
        except Exception:
            for row in range(n):
                try:
                    self._bind(slice(row, row + 1))()
                except Exception as error:
                    failures[row] = f"{type(error).__name__}: {error}"
            if len(failures) == n:
                self._probe(1)
        self._pool.swap()
        return failures

    def _bind(self, rows: slice) -> Step:
        return self._runner.bind(self._ids[rows], self._pool.before(rows), self._pool.after(rows), self._outputs[rows])

    def _digest(self, ids: Ids, failures: dict[int, str]) -> TokenBatch | None:
        """After a step: weigh, read, sample, queue what was sampled, and let go of who has ended."""
        n, table = len(ids), self._table
        ended: dict[int, tuple[FinishReason, str]] = {
            row: (FinishReason.FAILED, detail) for row, detail in failures.items()
        }
        table.mark_seen(ids)
        quiet = table.scoring[:n] | table.reading[:n]  # rows that sample nothing
        if quiet.any():
            self._score(n, ended)
            self._read(n, ended)
        table.advance(n)
        done = table.empty(n)
        if table.unfilled[:n].any():
            for row in np.flatnonzero(done & (table.unfilled[:n] > 0)).tolist():
                self._refill(row)
            done = table.empty(n)
        for row in np.flatnonzero(done & quiet).tolist():
            ended.setdefault(row, (FinishReason.STOP, ""))
        done &= ~quiet
        batch = self._sample(done, ended)
        for row in sorted(ended, reverse=True):  # from the last on, so that no row moves before its turn
            self._finish(row, *ended[row])
        return batch

    def _sample(self, emits: Mask, ended: dict[int, tuple[FinishReason, str]]) -> TokenBatch | None:
        """Sample where `emits`, queue the tokens, and note in `ended` who is done."""
        if ended:
            emits[list(ended)] = False
        if not emits.any():
            return None
        table, running = self._table, self.scheduler.running
        samples = self._sampler.sample(self._outputs[: len(emits)], table, emits)
        if not samples.finite.all():
            for row in np.flatnonzero(emits & ~samples.finite).tolist():
                ended[row] = (FinishReason.FAILED, NOT_FINITE)
            emits &= samples.finite
        rows = np.flatnonzero(emits)
        tokens = samples.tokens[rows]
        table.push(rows, tokens)
        batch = TokenBatch(
            sequences=[running[row] for row in rows.tolist()],
            tokens=tokens.tolist(),
            logprobs=samples.logprobs[rows].tolist(),
            alternatives={
                place: self._sampler.alternatives(self._outputs[rows[place]], int(table.alternatives[rows[place]]))
                for place in np.flatnonzero(table.alternatives[rows]).tolist()
            },
        )
        for row in rows[table.generated[rows] >= table.max_tokens[rows]].tolist():
            ended[row] = (FinishReason.LENGTH, "")
        for row in rows[table.stops[rows]].tolist():
            self._ask_stop(row, int(table.pending[row, 0]), ended)
        for row in rows[table.generated[rows] % CHUNK == 0].tolist():
            table.draw(row, running[row])
        return batch

    def _ask_stop(self, row: int, token: int, ended: dict[int, tuple[FinishReason, str]]) -> None:
        """Ask a sequence whether the token just sampled ends it. If what answers fails, its row fails and no other."""
        stop = self.scheduler.running[row].stop
        assert stop is not None
        try:
            if stop(token):
                ended[row] = (FinishReason.STOP, "")
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            ended[row] = (FinishReason.FAILED, f"{type(error).__name__}: {error}")

    def _score(self, n: int, ended: dict[int, tuple[FinishReason, str]]) -> None:
        """Weigh the next prompt id of each scoring row."""
        table = self._table
        rows = np.flatnonzero(table.scoring[:n])
        if len(rows):
            cursor = table.cursor[rows]
            values = self._sampler.score(self._outputs[:n], rows, table.targets[rows, cursor])
            self._note(rows, cursor, values, ~np.isnan(values), ended)  # minus infinity: the impossible

    def _read(self, n: int, ended: dict[int, tuple[FinishReason, str]]) -> None:
        """Read what each row with a readout asks for."""
        table = self._table
        rows = np.flatnonzero(table.reading[:n])
        if len(rows):
            cursor = table.cursor[rows]
            outputs = self._outputs[rows]
            values = self._outputs[rows, table.targets[rows, cursor]]
            finite = np.asarray(np.isfinite(outputs).all(axis=1))
            self._note(rows, cursor, values, finite, ended)
        if table.record is not None:
            rows = np.flatnonzero(table.recording[:n])
            table.record[rows, table.cursor[rows]] = self._outputs[rows]

    def _note(
        self,
        rows: Rows,
        cursor: Ids,
        values: Floats | Doubles,
        finite: Mask,
        ended: dict[int, tuple[FinishReason, str]],
    ) -> None:
        self._table.values[rows, cursor] = values
        for row in rows[~finite].tolist():
            ended.setdefault(row, (FinishReason.FAILED, NOT_FINITE))

    def _refill(self, row: int) -> None:
        sequence = self.scheduler.running[row]
        self._collect(row, sequence)
        self._table.fill(row, sequence)
        self._look(row, sequence)

    def _look(self, row: int, sequence: Sequence) -> None:
        """Take the snapshot of a prompt of which only the last id is left."""
        if sequence.keep_prompt and self._table.filled[row] == 1 and not self._table.unfilled[row]:
            sequence.kept = Snapshot(self._pool.snapshot(row), sequence.prompt[-1:])

    def _collect(self, row: int, sequence: Sequence) -> None:
        """Take what was weighed or read in a chunk out of the table."""
        if sequence.sampling is not None:
            return
        table, count, readout = self._table, int(self._table.cursor[row]), sequence.readout
        sequence.values.append(table.values[row, :count].copy())
        if readout is None or table.record is None or not table.recording[row]:
            return
        outputs = table.record[row, :count]
        if readout.columns is not None:
            sequence.curve.append(outputs[:, readout.columns])
        wanted = readout.last - (len(sequence.prompt) - sequence.eaten)  # of this chunk: the rest is still to come
        if wanted > 0:
            sequence.outputs.append(outputs[-wanted:].copy())

    def _reading(self, row: int, sequence: Sequence) -> Reading:
        last = self._outputs[row : row + 1].copy()
        return Reading(
            values=np.concatenate(sequence.values).astype(np.float32),
            curve=np.concatenate(sequence.curve) if sequence.curve else None,
            outputs=np.concatenate(sequence.outputs) if sequence.outputs else last,
        )

    def _finish(self, row: int, reason: FinishReason, detail: str = "") -> None:
        """Free the row, then tell."""
        sequence = self.scheduler.running[row]
        snapshot, logprobs, reading = None, None, None
        if sequence.keep_state and reason is not FinishReason.FAILED:
            pending = np.concatenate([self._table.pending_ids(row), sequence.prompt[sequence.eaten :]])
            snapshot = sequence.kept or Snapshot(self._pool.snapshot(row), pending)
        if sequence.sampling is None and reason is FinishReason.STOP:
            self._collect(row, sequence)
            if sequence.readout is not None:
                reading = self._reading(row, sequence)
            else:
                logprobs = np.concatenate(sequence.values)
        last = self.scheduler.remove(row)
        self._pool.release(row, last)
        self._table.release(row, last)
        self._finished.append((sequence, FinishEvent(reason, detail, snapshot, logprobs, reading)))

    def _take_finished(self) -> list[tuple[Sequence, FinishEvent]]:
        finished, self._finished = self._finished, []
        return finished

    def _probe(self, n: int) -> None:
        """Run n rows of zeros.

        Raises:
            RunnerBroken: that fails.
        """
        states = {name: np.zeros((n, *spec.shape), spec.dtype) for name, spec in self._runner.states.items()}
        after = {name: np.zeros_like(array) for name, array in states.items()}
        try:
            outputs = np.zeros((n, self._runner.output_size), np.float32)
            self._runner.bind(np.zeros(n, np.int64), states, after, outputs)()
        except Exception as error:
            raise RunnerBroken(f"{type(error).__name__}: {error}") from error
