"""One sequence's events on the event loop's side: a bounded queue with one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from service.engine.sequence import Event, FinishEvent, FinishReason

MAX_EVENTS = 1024
"""Events that may wait for a reader. A reader that falls further behind is ended, not buffered without end."""


class TokenStream:
    """Events in order; the last one is a FinishEvent. Belongs to the event loop's thread.

    Args:
        on_overflow: called once when the reader has fallen too far behind.
    """

    def __init__(self, on_overflow: Callable[[], None], max_events: int = MAX_EVENTS) -> None:
        self._events: deque[Event] = deque()
        self._max_events = max_events
        self._on_overflow = on_overflow
        self._waiter: asyncio.Future[None] | None = None
        self.finished = False
        """Whether the last event has been put in."""

    def put(self, event: Event) -> None:
        """Add an event. When the queue is full it is emptied and the stream ends with SLOW_READER."""
        if self.finished:
            return
        if len(self._events) >= self._max_events:
            self._events.clear()
            event = FinishEvent(FinishReason.SLOW_READER, f"{self._max_events:,} events were waiting to be read")
            self._on_overflow()
        self.finished = isinstance(event, FinishEvent)
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event:
        """The next event; waits for it. Not to be called after the FinishEvent."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    @property
    def ended_with(self) -> FinishEvent | None:
        """If the next event is the last one, that event: it lets a reader treat the last token as such."""
        head = self._events[0] if self._events else None
        return head if isinstance(head, FinishEvent) else None
