"""A place in the engine: taken before anything expensive is done for a request, left when the request ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from carousel.service.engine.errors import DeadlineExceeded, EngineFull, EngineStopped
from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import Ended, Request, TokenSink, Urgency
from carousel.service.engine.streams.token_stream import TokenStream
from carousel.service.engine.timeline import Moment, Timeline


class Host(Protocol):
    """What a place needs of the engine that it is in."""

    @property
    def failure(self) -> str | None:
        """Why the engine does not run; None while it does."""
        ...

    def submit(
        self, request: Request, place: Admission, on_overflow: Callable[[], None], sink: TokenSink | None
    ) -> TokenStream:
        """Start a request."""
        ...

    def cancel(self, id: int) -> None:
        """End a request."""
        ...

    def end(self, id: int, ended: Ended) -> None:
        """End a request, and tell its reader at once."""
        ...

    def leave(self, place: Admission) -> None:
        """Take the place back."""
        ...

    def moment(self) -> Moment:
        """Now."""
        ...


class Admission:
    """A Place (engine/port.py)."""

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
        self._stream: TokenStream | None = None
        """Of the request that has the place, or had it last."""
        self._timeline: Timeline | None = None
        self._covered = True
        """Whether it is the task that an early end ends."""
        self._ended: DeadlineExceeded | EngineFull | None = None
        """Why it came to an early end."""
        self.on_end: Callable[[Request, Ended], None] | None = None
        self.watched: list[Timeline] | None = None
        self.admitted_at = now

    @property
    def started(self) -> bool:
        """See Place."""
        return self._stream is not None

    @property
    def waits(self) -> bool:
        """Whether its rows, or the work before them, are still to come."""
        return self._ended is None and self.joined_at is None

    @property
    def joined_at(self) -> float | None:
        """See Place."""
        return None if self._stream is None else self._stream.joined_at

    def start(
        self, request: Request, on_overflow: Callable[[], None] = lambda: None, sink: TokenSink | None = None
    ) -> TokenStream:
        """See Place."""
        if self._engine.failure is not None:
            raise EngineStopped(self._engine.failure)
        assert request.head.rows == self.rows, "a place was taken for another number of rows"
        now = time.perf_counter()
        self._timeline = None
        if self.watched is not None:
            self._timeline = Timeline(
                rows=self.rows,
                prompt_tokens=len(request.prompt),
                cached_tokens=request.consumed,
                generates=request.head.new_ids > 0,
                admitted_at=now if self.started else self.admitted_at,
                submitted_at=now,
            )
            self.watched.append(self._timeline)
        stream = self._engine.submit(request, self, on_overflow, sink)
        stream.timeline = self._timeline
        self._stream, self._covered = stream, False
        if self._ended is not None:  # what is started after the end is too late as well
            self._end_request(self._ended)
        return stream

    def end(self, why: DeadlineExceeded | EngineFull) -> None:
        """See Place."""
        if self._ended is not None:
            return
        self._ended = why
        if not self._covered:
            if self._stream is not None:  # else it ends when it starts
                self._end_request(why)
        elif self._task is not None:
            self._cancelling = self._task.cancelling()
            self._task.cancel()

    def cover(self) -> None:
        """See Place."""
        self._covered = True

    def defer(self) -> None:
        """See Place. Others of the client's request may have been told something already."""
        self._covered = False

    def _end_request(self, why: DeadlineExceeded | EngineFull) -> None:
        assert self._stream is not None
        reason = FinishReason.DEADLINE if isinstance(why, DeadlineExceeded) else FinishReason.OVERLOAD
        self._engine.end(self._stream.id, Ended(reason, str(why)))

    def cancel(self) -> None:
        """See Place."""
        if self._stream is not None:
            self._engine.cancel(self._stream.id)

    def note_first_token(self) -> None:
        """See Place."""
        if self._timeline is not None:
            self._timeline.first_token = self._engine.moment()

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
