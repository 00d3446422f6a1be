"""A place in the engine: taken before anything expensive is done for a request, left when the request ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from carousel.service.engine.admission.queue_time import Urgency
from carousel.service.engine.errors import DeadlineExceeded, EngineFull, EngineStopped
from carousel.service.engine.sequence import FinishEvent, FinishReason, Marks, Sequence
from carousel.service.engine.streams.token_stream import TokenSink, TokenStream


class Host(Protocol):
    """What a place needs of the engine that it is in."""

    @property
    def failure(self) -> str | None:
        """Why the engine does not run; None while it does."""
        ...

    def submit(
        self, sequence: Sequence, on_overflow: Callable[[], None], sink: TokenSink | None, *, first: bool
    ) -> TokenStream:
        """Start a sequence; `first` where its place had none before."""
        ...

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence."""
        ...

    def end(self, sequence: Sequence, event: FinishEvent) -> None:
        """End a sequence, and tell its reader at once."""
        ...

    def leave(self, place: Admission) -> None:
        """Take the place back."""
        ...


class Admission:
    """A place in the engine for one sequence; a context manager that ends the sequence when it is left.

    From when it is entered the request's time runs. When that is up, or an overload ends who waits, the sequence ends;
    or, as long as there has been none, the work on it: the task that has entered is cancelled, and leaving raises why.
    What comes after the sequence (a session that is written) is not cut off, unless `cover` says so.
    """

    def __init__(self, engine: Host, rows: int, urgency: Urgency, deadline_seconds: float, now: float) -> None:
        self._engine = engine
        self.rows = rows
        self.batch = urgency.batch
        self._allowed_seconds = min(urgency.timeout_seconds, deadline_seconds)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        """That has entered."""
        self._cancelling: int | None = None
        """How often the task had been cancelled before it was from here; None where it was not."""
        self._sequence: Sequence | None = None
        self._covered = True
        """Whether it is the task that an early end ends."""
        self._ended: DeadlineExceeded | EngineFull | None = None
        """Why it came to an early end."""
        self.on_end: Callable[[Sequence], None] | None = None
        """Called with each sequence that has this place, once it has ended; later than the place, perhaps."""
        self.watched: list[Sequence] | None = None
        """Gets each sequence that has this place, with marks; None where nobody wants them."""
        self.admitted_at = now

    @property
    def started(self) -> bool:
        """Whether a sequence has had it."""
        return self._sequence is not None

    @property
    def waits(self) -> bool:
        """Whether its rows, or the work before them, are still to come."""
        sequence = self._sequence
        return self._ended is None and (sequence is None or sequence.joined_at is None)

    def start(
        self, sequence: Sequence, on_overflow: Callable[[], None] = lambda: None, sink: TokenSink | None = None
    ) -> TokenStream:
        """Submit the sequence that the place was taken for.

        Args:
            sequence: what to run.
            on_overflow: called when its reader has fallen too far behind and the sequence was ended.
            sink: takes tokens past the stream while its reader waits.
        """
        if self._engine.failure is not None:
            raise EngineStopped(self._engine.failure)
        assert sequence.rows == self.rows, "a place was taken for another number of rows"
        if self.watched is not None:
            now = time.perf_counter()
            sequence.marks = Marks(self.admitted_at if self._sequence is None else now, now, sequence.eaten)
            self.watched.append(sequence)
        first, self._sequence, self._covered = self._sequence is None, sequence, False
        sequence.on_end = self.on_end
        sequence.batch = self.batch
        stream = self._engine.submit(sequence, on_overflow, sink, first=first)
        if self._ended is not None:  # what is started after the end is too late as well
            self._end_sequence(self._ended)
        return stream

    def end(self, why: DeadlineExceeded | EngineFull) -> None:
        """Come to an early end, for this reason."""
        if self._ended is not None:
            return
        self._ended = why
        if not self._covered:
            if self._sequence is not None:  # else it ends when it starts
                self._end_sequence(why)
        elif self._task is not None:
            self._cancelling = self._task.cancelling()
            self._task.cancel()

    def cover(self) -> None:
        """From here on it is the task again that an early end ends: the sequence has ended, and much is left to do."""
        self._covered = True

    def defer(self) -> None:
        """The sequence waits for another one of its request: an early end is told when it starts, to whoever reads it,
        as others of the request may have been told something already."""
        self._covered = False

    def _end_sequence(self, why: DeadlineExceeded | EngineFull) -> None:
        assert self._sequence is not None
        reason = FinishReason.DEADLINE if isinstance(why, DeadlineExceeded) else FinishReason.OVERLOAD
        self._engine.end(self._sequence, FinishEvent(reason, str(why)))

    def cancel(self) -> None:
        """End the sequence early; its stream still gets a FinishEvent."""
        if self._sequence is not None:
            self._engine.cancel(self._sequence)

    def __enter__(self) -> Admission:
        self._task = asyncio.current_task()
        if self._allowed_seconds < math.inf:
            late = DeadlineExceeded(f"{self._allowed_seconds:,.12g} s are over")
            self._timer = asyncio.get_running_loop().call_later(self._allowed_seconds, self.end, late)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.cancel()
        self._engine.leave(self)
        task, self._task = self._task, None
        if self._cancelling is not None:
            assert task is not None
            assert self._ended is not None
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise self._ended from None
