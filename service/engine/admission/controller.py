"""The admission controller: who is let in, how many places there are, and how long one may wait for a row."""

from __future__ import annotations

import math
from collections.abc import Callable

from carousel.service.engine.admission.overload import Overload
from carousel.service.engine.admission.queue_time import Held, QueueTime
from carousel.service.engine.errors import EngineFull, WaitTooLong
from carousel.service.engine.port import INTERACTIVE, Urgency

SHORT = 1 / 128
"""Rows' worth, at least one row: a queue that is no longer is nobody's concern, and in an overload none is longer.
Where several come for each that ends, one who waits keeps rows busy, and hardly waits."""


class AdmissionController:
    """A place for each row that a request has, waits for or will ask for. Belongs to the event loop.

    It knows of the engine's thread what that has told: who joined, and who ended.

    Interactive and batch are counted apart, in rows: nobody interactive waits for batch.

    Args:
        max_rows: rows there are.
        max_waiting: rows that may be waited for. Half of the places to wait in are not for batch requests.
        max_wait_seconds: nobody is let in who is to wait longer.
        clock: seconds, monotonic; the one that `joined_at` is read from.
    """

    def __init__(self, max_rows: int, max_waiting: int, max_wait_seconds: float, clock: Callable[[], float]) -> None:
        self.max_rows = max_rows
        self._clock = clock
        self._max_taken = max_rows + max_waiting
        self._max_taken_by_batch = max_rows + (max_waiting + 1) // 2
        self._max_wait_seconds = max_wait_seconds
        self.queue_time = QueueTime(max_rows)
        self.overload = Overload()
        self.short = math.ceil(SHORT * max_rows)
        """Rows that are waited for in a queue that is short."""
        self.taken = 0
        """Places that have not been left."""
        self._asked = {False: 0, True: 0}
        """Rows of those who have a place and have not ended, running ones included; apart by whether they are batch."""
        self._held: dict[int, Held] = {}
        """Who runs, by the request's id."""
        self._running = {False: 0, True: 0}
        """Rows of those who run; apart by whether they are batch."""

    def most(self, *, batch: bool) -> int:
        """How many there are."""
        return self._max_taken_by_batch if batch else self._max_taken

    def check(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> None:
        """Hold that so many may be taken now.

        Args:
            rows: of the request.
            urgency: how it waits, and how long it may take.
            queued: places that the same request has taken already: it does not wait for others on account of them.

        Raises:
            EngineFull: all are taken, or fewer are free, or (WaitTooLong) a row would come too late.
        """
        refusal = self._refusal(rows, urgency, queued)
        if refusal is not None:
            raise refusal

    def came(self, urgency: Urgency, refusal: EngineFull | None = None) -> bool:
        """Note that somebody asked for rows, and was let in or not. True where an overload begins with it.

        Batch says nothing of the others, nor does who is in a hurry; and who wants many rows only where not even one
        is to be had.
        """
        if urgency.batch or (refusal is not None and refusal.impatient):
            return False
        turned_away = refusal is not None and self._refusal(1, INTERACTIVE, 0) is not None
        return self.overload.came(self._clock(), short=self._is_short(0), turned_away=turned_away)

    def take(self, rows: int, *, batch: bool) -> None:
        """A request is let in."""
        self.taken += rows
        self._asked[batch] += rows

    def submit(self, rows: int, *, batch: bool) -> None:
        """A place that has had a request before has another one."""
        self._asked[batch] += rows

    def joined(self, id: int, held: Held, *, batch: bool) -> None:
        """A request has its rows."""
        self._held[id] = held
        self._running[batch] += held.rows

    def ended(self, id: int, rows: int, *, batch: bool) -> None:
        """A request needs its rows no more, whether it ever had them or not."""
        self._asked[batch] -= rows
        held = self._held.pop(id, None)
        if held is not None and rows:  # a live sequence has none
            self._running[batch] -= rows
            self.queue_time.ended(self._clock() - held.joined_at, held.asked)

    @property
    def running(self) -> int:
        """Rows in use."""
        return self._running[False] + self._running[True]

    @property
    def running_requests(self) -> int:
        """Whose these are."""
        return len(self._held)

    def leave(self, rows: int, *, batch: bool, started: bool) -> None:
        """Give places back.

        Args:
            rows: that they were taken for.
            batch: as they were taken.
            started: whether a request ever had them.
        """
        self.taken -= rows
        if not started:
            self._asked[batch] -= rows

    def wait_seconds(self, place: int) -> float:
        """How long who is at such a place of the queue waits for a row."""
        return self.queue_time.wait_seconds(self._held.values(), place, self._clock(), rows=self.running)

    def is_short(self, place: int) -> bool:
        """Whether who is at such a place of the queue waits no longer than it takes a short queue to have its rows."""
        enough = self.queue_time.held_seconds * self.short / self.max_rows
        return self.wait_seconds(place) <= enough

    def _refusal(self, rows: int, urgency: Urgency, queued: int) -> EngineFull | None:
        batch = urgency.batch
        ahead, most = self._ahead(batch) - queued, self.most(batch=batch)
        wait_seconds = self.wait_seconds(ahead + rows)
        if self.taken + rows > most:
            return EngineFull(f"{self.taken:,} requests run and wait; allowed are {most:,}", wait_seconds)
        if self.overload.on and not batch and not self._is_short(queued):
            message = f"more come than can be served, and a row would be free in {wait_seconds:.3g} s"
            return WaitTooLong(message, wait_seconds)
        allowed = min(self._max_wait_seconds, urgency.timeout_seconds)
        if wait_seconds > allowed:
            message = f"a row would be free in {wait_seconds:.3g} s; allowed are {allowed:.3g}"
            return WaitTooLong(message, wait_seconds, impatient=wait_seconds <= self._max_wait_seconds)
        return None

    def _is_short(self, queued: int) -> bool:
        """Whether the queue of those who are not batch is short, but for places that the same request has taken."""
        return self._waiting - queued < self.short and self.is_short(self._ahead(batch=False) - queued + 1)

    def _ahead(self, batch: bool) -> int:
        """Rows that are waited for, or will be, before those of who comes now."""
        if batch:
            return self._asked[False] + self._asked[True] - self.running
        return self._asked[False] - self._running[False]

    @property
    def _waiting(self) -> int:
        """Rows that are waited for, but by batch requests."""
        return max(0, self._asked[False] + self._running[True] - self.max_rows)
