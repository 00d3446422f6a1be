"""The engine's loop body: who joins, one step of everyone, what came of it.

Axes: n active rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from carousel.service.engine.heads.beam_rows import BeamRows
from carousel.service.engine.heads.quiet_rows import QuietRows
from carousel.service.engine.prefill.prefill import Prefill
from carousel.service.engine.rows.plan import Mask, Rows
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE, Ended, RowTable
from carousel.service.engine.runner import PrefillRunner, Runner, Step, StepArrays, run_zeros
from carousel.service.engine.sampling.sampler import Sampler, Samples
from carousel.service.engine.scheduler import Scheduler
from carousel.service.engine.sequence import (
    FinishEvent,
    FinishReason,
    Floats,
    Ids,
    Sequence,
    Snapshot,
    StepOutput,
    StepReport,
    TokenBatch,
)
from carousel.service.engine.states.pool import HostPool, StatePool, zeros


class EngineCore:
    """Sequences in, events out, one step at a time. Not thread-safe: one thread owns it.

    Args:
        runner: runs the step graph.
        max_rows: sequences that may run at once.
        clock: seconds, monotonic.
        prefill: runs the prefill graph; None where there is none, and every id is fed to a step.
        pool: holds the runner's states, max_rows of them; None for arrays on the host.
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
        ports = runner.ports
        (size,) = ports.outputs[ports.head.reads].shape
        self.scheduler = Scheduler(max_rows)
        self._runner = runner
        self._clock = clock
        self._pool: StatePool = pool or HostPool(ports.states, ports.context, max_rows)
        self._table = RowTable(max_rows, size)
        self._beams = BeamRows(self._pool, self._table)
        self.prefill = Prefill(prefill, ports.states)
        self._sampler = Sampler(size)
        self._inputs = zeros(ports.inputs, max_rows)
        self._said = zeros(ports.outputs, max_rows)
        self._ids: Ids = cast(Ids, self._inputs[ports.head.feeds])
        self._outputs: Floats = cast(Floats, self._said[ports.head.reads])
        self._quiet = QuietRows(self._table, self._sampler, self._outputs)
        attends = ports.head.attends
        self._attention = None if attends is None else cast(Floats, self._said[attends])
        self._bound: dict[tuple[int, bool], Step] = {}
        """Steps by number of rows and by which of the pool's two arrays is read."""
        self._finished: list[tuple[Sequence, FinishEvent]] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it joins at the next step with a free row, or with as many as its beam is wide.

        Raises:
            ValueError: its beam is wider than the engine.
        """
        self.scheduler.add(sequence)
        self.prefill.begin(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step; nothing happens if it has ended already."""
        row = self.scheduler.find(sequence)
        if row is not None:
            self._finish(row, FinishReason.CANCELLED)
        elif self.scheduler.withdraw(sequence):
            self.prefill.withdraw(sequence)
            snapshot = None
            if sequence.keep_state and sequence.beam is None:
                state = sequence.snapshot.state if sequence.snapshot else self._pool.blank()
                snapshot = Snapshot(state, sequence.prompt[sequence.eaten :])
            self._finished.append((sequence, FinishEvent(FinishReason.CANCELLED, snapshot=snapshot)))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run and nothing to tell."""
        scheduler = self.scheduler
        return not (scheduler.running or scheduler.waiting or scheduler.waiting_batch or self._finished)

    def step(self) -> StepOutput:
        """Let waiting sequences join, take every row one id forward, and tell what came of it.

        Raises:
            RunnerBroken: the step failed for every row, and for a row of zeros too.
        """
        started = self._clock()
        self._join(started)
        prefill_seconds = 0.0
        if self.prefill.pending and not self._finished:  # which wait to be told
            eating = self._clock()
            if self.prefill.eat(busy=bool(self.scheduler.running)):
                self._join(started)
            prefill_seconds = self._clock() - eating
        n, batch, report = len(self.scheduler.running), None, None
        if n:
            prompt_rows = self._table.generated[:n] == 0
            ids = self._ids[:n]
            ids[:] = self._table.next_ids(n)
            runner_started = self._clock()
            failures = self._run(n)
            runner_seconds = self._clock() - runner_started
            batch, generated = self._digest(ids, failures)
            report = StepReport(
                rows=n,
                prompt_tokens=int(prompt_rows.sum()),
                eaten_ahead=self.prefill.take_eaten(),
                generated_tokens=generated,
                step_seconds=self._clock() - started,
                runner_seconds=runner_seconds + prefill_seconds,
            )
        return StepOutput(batch, self._take_finished(), report)

    def fail_all(self, detail: str) -> StepOutput:
        """End every sequence, running and waiting."""
        while self.scheduler.running:
            self._finish(len(self.scheduler.running) - 1, FinishReason.FAILED, detail)
        for sequence in self.scheduler.withdraw_all():
            self.prefill.withdraw(sequence)
            self._finished.append((sequence, FinishEvent(FinishReason.FAILED, detail)))
        return StepOutput(None, self._take_finished(), None)

    def _join(self, now: float) -> None:
        """Let waiting sequences into free rows."""
        for rows, sequence in self.scheduler.admit():
            for row in rows:
                self._pool.acquire(row, sequence.snapshot.state if sequence.snapshot else None, sequence.context)
            if sequence.beam is None:
                self._look(rows[0], sequence)
                self._table.acquire(rows[0], sequence)
            else:
                self._beams.acquire(rows, sequence)
            sequence.joined_at = now

    def _run(self, n: int) -> Ended:
        """One step of all rows. Returns the rows that failed, with the reason.

        A step that raises says nothing about which row it was; what it read is untouched, so each row is tried alone.
        """
        key = (n, self._pool.swapped)
        failures: Ended = {}
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
                    failures[row] = (FinishReason.FAILED, f"{type(error).__name__}: {error}")
            if len(failures) == n:
                run_zeros(self._runner, 1)
        self._pool.swap()
        return failures

    def _bind(self, rows: slice) -> Step:
        pool = self._pool
        return self._runner.bind(
            StepArrays(
                inputs={name: array[rows] for name, array in self._inputs.items()},
                before=pool.before(rows),
                context=pool.context(rows),
                after=pool.after(rows),
                outputs={name: array[rows] for name, array in self._said.items()},
            )
        )

    def _digest(self, ids: Ids, ended: Ended) -> tuple[TokenBatch | None, int]:
        """After a step: weigh, read, sample, search, queue what was found, and let go of who has ended.

        Returns what was sampled, and how many tokens that makes, those of beams counted.
        """
        n, table = len(ids), self._table
        table.mark_seen(ids)
        quiet = table.traits(n).quiet
        if quiet is not None:
            self._quiet.note(self.scheduler.running, ended)
        table.advance(n)
        done = table.empty(n)
        if table.unfilled[:n].any():
            for row in np.flatnonzero(done & (table.unfilled[:n] > 0)).tolist():
                self._refill(row)
            done = table.empty(n)
        grown, over = self._beams.advance(self._outputs[:n], self._attention, done, ended) if self._beams else (0, [])
        if quiet is not None:
            for row in np.flatnonzero(done & quiet).tolist():
                ended.setdefault(row, (FinishReason.STOP, ""))
            done &= ~quiet
        batch, sampled = self._sample(done, ended)
        for row in sorted(ended, reverse=True):  # from the last on, so that no row moves before its turn
            self._finish(row, *ended[row])
        for sequence, reason, detail in over:
            self._finish(self.scheduler.running.index(sequence), reason, detail)
        return batch, grown + sampled

    def _sample(self, emits: Mask, ended: Ended) -> tuple[TokenBatch | None, int]:
        """Sample where `emits`, queue the tokens, and note in `ended` who is done.

        Returns what is to be told now, and how many tokens were sampled.
        """
        if ended:
            emits[list(ended)] = False
        if not emits.any():
            return None, 0
        table, running, traits = self._table, self.scheduler.running, self._table.traits(len(emits))
        samples = self._sampler.sample(self._outputs[: len(emits)], table, emits)
        if not samples.finite.all():
            for row in np.flatnonzero(emits & ~samples.finite).tolist():
                ended[row] = (FinishReason.FAILED, NOT_FINITE)
            emits &= samples.finite
        rows = np.flatnonzero(emits)
        tokens = samples.tokens[rows]
        table.push(rows, tokens)
        if traits.whole is None:
            batch: TokenBatch | None = self._tell(rows, samples)
        else:
            whole = traits.whole[rows]
            batch = None if whole.all() else self._tell(rows[~whole], samples)
            self._keep(rows[whole], samples)
        generated = table.generated[rows]
        for row in rows[generated >= table.max_tokens[rows]].tolist():
            ended[row] = (FinishReason.LENGTH, "")
        if traits.ends:
            for row in rows[tokens == table.end[rows]].tolist():
                ended[row] = (FinishReason.STOP, "")
        if traits.stops:
            for row in rows[table.stops[rows]].tolist():
                self._ask_stop(row, int(table.pending[row, 0]), ended)
        for row in rows[generated % CHUNK == 0].tolist():
            if row not in ended:
                table.draw(row, running[row])
        return batch, len(rows)

    def _tell(self, rows: Rows, samples: Samples) -> TokenBatch:
        """What these rows sampled."""
        table, looks, running = self._table, self._attention, self.scheduler.running
        traits = table.traits(len(running))
        return TokenBatch(
            sequences=[running[row] for row in rows.tolist()],
            tokens=samples.tokens[rows].tolist(),
            logprobs=samples.logprobs[rows].tolist(),
            alternatives={
                place: samples.alternatives[row]
                for place, row in enumerate(rows.tolist())
                if row in samples.alternatives
            }
            if samples.alternatives
            else {},
            attention={place: looks[rows[place]].copy() for place in np.flatnonzero(table.attentive[rows]).tolist()}
            if traits.attentive and looks is not None
            else {},
        )

    def _keep(self, rows: Rows, samples: Samples) -> None:
        """Let sequences that are told as a whole remember what these rows sampled."""
        running, attentive = self.scheduler.running, self._table.attentive
        looks = self._attention if self._table.traits(len(running)).attentive else None
        chosen = zip(rows.tolist(), samples.tokens[rows].tolist(), samples.logprobs[rows].tolist(), strict=True)
        for row, token, logprob in chosen:
            looked = looks[row].copy() if looks is not None and attentive[row] else None
            running[row].said.append((token, logprob, looked))

    def _ask_stop(self, row: int, token: int, ended: Ended) -> None:
        """Ask a sequence whether the token just sampled ends it. If what answers fails, its row fails and no other."""
        stop = self.scheduler.running[row].stop
        assert stop is not None
        try:
            if stop(token):
                ended[row] = (FinishReason.STOP, "")
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            ended[row] = (FinishReason.FAILED, f"{type(error).__name__}: {error}")

    def _refill(self, row: int) -> None:
        sequence = self.scheduler.running[row]
        self._quiet.collect(row, sequence)
        self._look(row, sequence)
        self._table.fill(row, sequence)

    def _look(self, row: int, sequence: Sequence) -> None:
        """Take a copy of the state, where one is asked for after as many ids."""
        if sequence.eaten in sequence.looks and sequence.eaten not in sequence.looked:
            sequence.looked[sequence.eaten] = self._pool.snapshot(row)

    def _finish(self, row: int, reason: FinishReason, detail: str = "") -> None:
        """End the sequence that the row belongs to: free its rows, then tell."""
        sequence = self.scheduler.running[row]
        if sequence.beam is not None:
            for each in self._beams.rows_of(sequence):
                self._release(each)
            beam = self._beams.release(sequence)
            found = beam.hypotheses() if beam.ended else ()
            sequence.sampled = beam.length
            self._finished.append((sequence, FinishEvent(reason, detail, hypotheses=found)))
            return
        sequence.sampled = int(self._table.generated[row])
        snapshot = None
        if sequence.keep_state and reason is not FinishReason.FAILED:
            pending = np.concatenate([self._table.pending_ids(row), sequence.prompt[sequence.eaten :]])
            snapshot = sequence.prompt_snapshot or Snapshot(self._pool.snapshot(row), pending)
        end = FinishEvent(reason, detail, snapshot)
        if sequence.quiet and reason is FinishReason.STOP:
            end = replace(self._quiet.end(row, sequence), snapshot=snapshot)
        self._release(row)
        self._finished.append((sequence, end))

    def _release(self, row: int) -> None:
        last = self.scheduler.remove(row)
        self._pool.release(row, last)
        self._table.release(row, last)
        if self._beams and row != last:
            self._beams.move(row, last, self.scheduler.running[row])

    def _take_finished(self) -> list[tuple[Sequence, FinishEvent]]:
        finished, self._finished = self._finished, []
        return finished
