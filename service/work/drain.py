"""The end of a server, in three steps: it begins to drain, the grace is over, it has stopped.

    begin   not ready any more, new work is refused; what runs goes on
    end     the grace is over: what still runs is ended as if it had been cancelled, and told so
    quiet   nothing runs any more

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from carousel.service.errors import Unavailable
from carousel.service.observability.requests import RequestRecord

Listener = Callable[[], None]
Task = asyncio.Task[Any]


class Drain:
    """What runs, so that it can be waited for and ended."""

    def __init__(self) -> None:
        self.begun = False
        self.over = False
        """Whether the grace is over."""
        self._running: dict[Task, RequestRecord | None] = {}
        self._listeners: dict[object, Listener] = {}

    def enter(self, task: Task, record: RequestRecord | None) -> None:
        """Wait for a task from now on, until it leaves.

        Args:
            task: that serves a request or a socket.
            record: of a request whose task is cancelled when the grace is over before it is answered; None for what
                listens instead.
        """
        self._running[task] = record

    def leave(self, task: Task) -> None:
        """Wait for it no more."""
        del self._running[task]

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call the listener at the beginning and at the end, for the time of a `with` block."""
        key = object()
        self._listeners[key] = listener
        try:
            if self.begun:
                listener()  # it came too late to be told
            yield
        finally:
            del self._listeners[key]

    def ending(self, cancel: Listener) -> AbstractContextManager[None]:
        """Call this when the grace is over, for the time of a `with` block: what it cancels tells its client so."""
        return self.listening(lambda: cancel() if self.over else None)

    def begin(self) -> None:
        """Refuse new work from now on."""
        self.begun = True
        self._tell()

    def end(self) -> None:
        """The grace is over: end what runs."""
        self.begun = self.over = True
        self._tell()
        for task, record in list(self._running.items()):
            if record is not None and record.status is None:
                task.cancel()

    async def quiet(self, within_seconds: float) -> bool:
        """Wait until nothing runs, for so long at most; whether it came to that."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=within_seconds)
        return not self._running

    def __len__(self) -> int:
        return len(self._running)

    def refusal(self) -> Unavailable:
        """What is told to those who ask for new work, and to those whose work had to be ended."""
        return Unavailable("shutting_down", "the server is shutting down; send the request again, to another one", 1)

    def _tell(self) -> None:
        for listener in list(self._listeners.values()):
            listener()
