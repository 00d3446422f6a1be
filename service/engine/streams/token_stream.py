"""One sequence's events on the event loop's side: a bounded queue with one reader, and a way past it.

A reader that waits for the next event is a task that has to be woken: for a token that costs more than all else that is
done with it. So a reader may leave a sink, which takes tokens at once while the reader waits with nothing in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from carousel.service.engine.fed import Answer
from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import Ended, Event, TokenSink, Told
from carousel.service.engine.streams.lock_turns import LOCK_TURNS
from carousel.service.engine.timeline import Timeline

MAX_EVENTS = 1024
"""Events that may wait for a reader. A reader that falls further behind is ended, not buffered without end."""


class TokenStream:
    """Events in order; the last one is Ended. Belongs to the event loop's thread.

    Args:
        id: of the request.
        on_overflow: called once when the reader has fallen too far behind.
        sink: takes tokens past the queue, but for the last one of a sequence that a step ended.
        max_events: see MAX_EVENTS.
        silent: whether the end is the only event.
    """

    def __init__(
        self,
        id: int,
        on_overflow: Callable[[], None],
        sink: TokenSink | None = None,
        max_events: int = MAX_EVENTS,
        *,
        silent: bool = False,
    ) -> None:
        self.id = id
        self.joined_at: float | None = None
        """When the request got its rows."""
        self.timeline: Timeline | None = None
        """Of the request, where somebody wants to know."""
        self._events: deque[Event] = deque()
        self._max_events = max_events
        self._on_overflow = on_overflow
        self._sink = sink
        self._waiter: asyncio.Future[None] | None = None
        """The reader's, while it waits with nothing in the queue."""
        self._error: BaseException | None = None
        """Of the sink."""
        self.finished = False
        """Whether the last event has been put in."""
        self._silent = silent
        if not silent:
            LOCK_TURNS.enter()

    def put_token(self, event: Told | Answer, last: bool) -> None:
        """Add a token, past the queue if that can be.

        Args:
            event: the token.
            last: whether the end follows at once. Then both are queued: a reader treats the last token as such.
        """
        if self._sink is not None and not last and self._waiter is not None and self._error is None:
            try:
                if self._sink(event):
                    return
            except BaseException as error:  # a panic of the tokenizers library is not an Exception
                self._error = error
                self._wake()
                return
        self.put(event)

    def put(self, event: Event) -> None:
        """Add an event. When the queue is full it is emptied and the stream ends with SLOW_READER."""
        if self.finished:
            return
        if len(self._events) >= self._max_events:
            self._events.clear()
            event = Ended(FinishReason.SLOW_READER, f"{self._max_events:,} events were waiting to be read")
            self._on_overflow()
        self.finished = isinstance(event, Ended)
        if self.finished:
            # Whoever made them has this stream's place, which knows it: only a search for garbage would free the two.
            self._sink, self._on_overflow = None, _nothing
            if not self._silent:
                LOCK_TURNS.leave()
        self._events.append(event)
        self._wake()

    async def get(self) -> Event:
        """The next event; waits for it. Not to be called after the end."""
        while not self._events and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        return self._events.popleft()

    @property
    def ended_with(self) -> Ended | None:
        """If the next event is the last one, that event: it lets a reader treat the last token as such."""
        head = self._events[0] if self._events else None
        return head if isinstance(head, Ended) else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            self._waiter = None


def _nothing() -> None:
    """What is done about a reader behind the end."""
