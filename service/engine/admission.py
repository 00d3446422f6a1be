"""A place in the engine: taken before anything expensive is done for a request, left when the request ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from service.engine.queue_time import Urgency
from service.engine.sequence import Marks, Sequence
from service.engine.token_stream import TokenSink, TokenStream

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine


class EngineFull(Exception):
    """As many sequences run and wait as may.

    Args:
        wait_seconds: how long one more would wait.
        impatient: whether it is only the request's own timeout that is shorter.
    """

    reason: Literal["full", "wait"] = "full"

    def __init__(self, message: str, wait_seconds: float, *, impatient: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.impatient = impatient


class WaitTooLong(EngineFull):
    """There are places, but a row would come too late."""

    reason = "wait"


class BeamTooWide(Exception):
    """A beam asks for more rows than the engine has: waiting would not help."""


class EngineStopped(Exception):
    """The engine does not run: it was closed, or its runner is broken."""


class Admission:
    """A place in the engine for one sequence; a context manager that ends the sequence when it is left."""

    def __init__(self, engine: AsyncEngine, rows: int, urgency: Urgency, deadline_seconds: float) -> None:
        self._engine = engine
        self._rows = rows
        self._batch = urgency.batch
        self._allowed_seconds = min(urgency.timeout_seconds, deadline_seconds)
        self._timer: asyncio.TimerHandle | None = None
        self._sequence: Sequence | None = None
        self.on_end: Callable[[Sequence], None] | None = None
        """Called with each sequence that has this place, once it has ended; later than the place, perhaps."""
        self.watched: list[Sequence] | None = None
        """Gets each sequence that has this place, with marks; None where nobody wants them."""
        self.admitted_at = time.perf_counter()

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
        assert sequence.rows == self._rows, "a place was taken for another number of rows"
        if self.watched is not None:
            now = time.perf_counter()
            sequence.marks = Marks(self.admitted_at if self._sequence is None else now, now, sequence.eaten)
            self.watched.append(sequence)
        first, self._sequence = self._sequence is None, sequence
        sequence.on_end = self.on_end
        sequence.batch = self._batch
        stream = self._engine.submit(sequence, on_overflow, sink, first=first)
        if self._timer is None and self._allowed_seconds < math.inf:
            left = self._allowed_seconds - (time.perf_counter() - self.admitted_at)
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._expire)
        return stream

    def _expire(self) -> None:
        if self._sequence is not None:
            self._timer = None  # what is started after this is too late as well
            self._engine.expire(self._sequence, f"{self._allowed_seconds:,.12g} s are over")

    def cancel(self) -> None:
        """End the sequence early; its stream still gets a FinishEvent."""
        if self._sequence is not None:
            self._engine.cancel(self._sequence)

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.cancel()
        self._engine.leave(self._rows, started=self._sequence is not None)
