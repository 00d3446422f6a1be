"""Who is let in: places in the engine, how many there are, and how long one may wait for what they stand for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from service.engine.admission import EngineFull, WaitTooLong
from service.engine.flood import SHORT, Flood
from service.engine.queue_time import INTERACTIVE, QueueTime, Urgency
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence

CROWDED_OUT_SECONDS = 0.002
"""Between the ends of those who are crowded out, of whom there may be a thousand: tokens go out in between."""


class Places:
    """One for each row that a sequence has, waits for or will ask for. Belongs to the event loop.

    Args:
        scheduler: of the engine; its lists are read as the engine's thread leaves them.
        max_waiting: rows that may be waited for. Half of the places to wait in are not for batch sequences.
        max_wait_seconds: nobody is let in who is to wait longer.
    """

    def __init__(self, scheduler: Scheduler, max_waiting: int, max_wait_seconds: float) -> None:
        self._scheduler = scheduler
        self._max_taken = scheduler.max_rows + max_waiting
        self._max_taken_by_batch = scheduler.max_rows + (max_waiting + 1) // 2
        self._max_wait_seconds = max_wait_seconds
        self.queue_time = QueueTime(scheduler.max_rows)
        self._flood = Flood(scheduler.max_rows)
        self.taken = 0
        """Places that have not been left."""
        self._unstarted = 0
        """Those without a sequence so far."""
        self._submitted = 0
        """Rows of the sequences that run or wait."""

    def most(self, *, batch: bool) -> int:
        """How many there are."""
        return self._max_taken_by_batch if batch else self._max_taken

    def check(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> None:
        """Hold that so many may be taken now.

        Args:
            rows: of the sequence.
            urgency: how it waits, and how long it may take.
            queued: places that the same request has taken already: it does not wait for others on account of them.

        Raises:
            EngineFull: all are taken, or fewer are free, or (WaitTooLong) a row would come too late.
        """
        ahead = self._unstarted + self._submitted - len(self._scheduler.running) - queued
        if not urgency.batch:
            ahead -= len(self._scheduler.waiting_batch)
        wait_seconds, most = self._wait_seconds(ahead + rows), self.most(batch=urgency.batch)
        if self.taken + rows > most:
            raise EngineFull(f"{self.taken:,} requests run and wait; allowed are {most:,}", wait_seconds)
        waiting, short = self._waiting(-queued), self._flood.short
        if self._flood.on and not urgency.batch and waiting >= short:
            raise EngineFull(f"{waiting:,} wait; while more come than can be served, {short:,} may", wait_seconds)
        longest = self._longest_wait(urgency.batch)
        allowed = min(longest, urgency.timeout_seconds)
        if wait_seconds > allowed:
            message = f"a row would be free in {wait_seconds:.3g} s; allowed are {allowed:.3g}"
            raise WaitTooLong(message, wait_seconds, impatient=wait_seconds <= longest)

    def came(self, rows: int, urgency: Urgency, refusal: EngineFull | None = None) -> bool:
        """Note that somebody asked for so many rows, and was let in or not. True where a flood begins with it.

        Nobody but batch sequences waits for batch sequences; and who is in a hurry says nothing of the others.
        """
        if urgency.batch or (refusal is not None and refusal.impatient):
            return False
        refused = refusal is not None
        full = refusal is not None and refusal.reason == "full"
        waiting = self._waiting(0 if refused else rows)
        return self._flood.came(rows, waiting, time.perf_counter(), refused=refused, full=full)

    @property
    def newest_first_until(self) -> float:
        """Until when it is better that who came last joins first; monotonic, seconds."""
        return self._flood.newest_first_until

    def take(self, rows: int) -> None:
        """A request is let in."""
        self.taken += rows
        self._unstarted += rows

    def submit(self, rows: int, *, first: bool) -> None:
        """A sequence begins to wait for its rows.

        Args:
            rows: of the sequence.
            first: whether its place had none before.
        """
        self._submitted += rows
        if first:
            self._unstarted -= rows

    def ended(self, sequence: Sequence) -> None:
        """A sequence needs its rows no more."""
        self._submitted -= sequence.rows
        if sequence.joined_at is not None:
            self.queue_time.ended(time.perf_counter() - sequence.joined_at, sequence.asked)

    def leave(self, rows: int, *, started: bool) -> None:
        """Give places back.

        Args:
            rows: that they were taken for.
            started: whether a sequence ever had them.
        """
        self.taken -= rows
        if not started:
            self._unstarted -= rows

    def crowded_out(self, sequences: Iterable[Sequence]) -> Iterator[tuple[Sequence, str]]:
        """Of these, newest first, those who wait and are too many for a flood; each with why it is ended."""
        place = 0
        for sequence in sequences:
            if sequence.joined_at is None and not sequence.batch:
                wait_seconds = self._wait_seconds(place + sequence.rows)
                if place >= self._flood.short or wait_seconds > self._longest_wait(batch=False):
                    yield sequence, f"more come than can be served, and a row would be free in {wait_seconds:.3g} s"
                else:
                    place += sequence.rows

    def _waiting(self, more: int) -> int:
        """How many rows would be waited for that are not for batch sequences, with so many more than are now."""
        places = self._unstarted + self._submitted - len(self._scheduler.waiting_batch) + more
        return max(0, places - self._scheduler.max_rows)

    def _wait_seconds(self, place: int) -> float:
        return self.queue_time.wait_seconds(self._scheduler.running, place, time.perf_counter())

    def _longest_wait(self, batch: bool) -> float:
        if batch or not self._flood.on:
            return self._max_wait_seconds
        return min(self._max_wait_seconds, SHORT * self.queue_time.held_seconds)
