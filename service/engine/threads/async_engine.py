"""The engine on the event loop: who has a place, what each is told. Its thread steps (engine_thread.py)."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from itertools import count

from carousel.service.engine.admission.admission import Admission
from carousel.service.engine.admission.controller import AdmissionController
from carousel.service.engine.admission.queue_time import Held
from carousel.service.engine.core import EngineCore
from carousel.service.engine.errors import BeamTooWide, EngineFull, EngineStopped, WaitTooLong
from carousel.service.engine.fed import Fed
from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import (
    INTERACTIVE,
    NOTHING,
    Counts,
    Description,
    Ended,
    Place,
    Request,
    StepReport,
    TokenSink,
    Told,
    Urgency,
)
from carousel.service.engine.sequence import StepOutput, TokenBatch
from carousel.service.engine.streams.token_stream import TokenStream
from carousel.service.engine.threads.engine_thread import SHUTTING_DOWN, Add, Cancel, Command, EngineThread, Feed
from carousel.service.engine.timeline import Moment

logger = logging.getLogger("carousel.engine")

ENDED_TOGETHER = 8
ENDED_EVERY_SECONDS = 0.005
"""Of the thousand who may wait when an overload begins, so many are told at a time: tokens go out in between."""


class AsyncEngine:
    """An EngineCore on a thread of its own: an Engine (engine/port.py).

    Args:
        core: the engine, warm.
        max_waiting: requests that may wait for a row; a beam counts as many as it is wide.
            Half of the places to wait in are not for batch requests.
        on_steps: called on the event loop with the reports of steps, each once.
        name: of the thread.
        max_wait_seconds: nobody is let in who is to wait longer for a row, by the pace of those who ended last.
        deadline_seconds: from a place's taking on, after which what is done in it is ended.
        max_live: live sequences that there may be.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        core: EngineCore,
        *,
        max_waiting: int,
        max_live: int = 1024,
        on_steps: Callable[[list[StepReport]], None],
        name: str = "engine",
        max_wait_seconds: float = math.inf,
        deadline_seconds: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._controller = AdmissionController(
            core.scheduler.max_rows, max_waiting, min(max_wait_seconds, deadline_seconds), clock
        )
        self._deadline_seconds = deadline_seconds
        self._max_live = max_live
        self._live = 0
        self._on_steps = on_steps
        self._steps = self._step_rows = 0
        self._vacant = asyncio.Event()
        self._admitted: dict[Admission, None] = {}
        """Who has a place, in the order in which they were let in."""
        self._ids = count()
        self._streams: dict[int, TokenStream] = {}
        self._places: dict[int, tuple[Place, Request]] = {}
        """Of each stream: the place that its request has, and that."""
        self._outbox: list[Command] = []
        """Commands of this iteration of the event loop, which go to the thread together."""
        self._failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(
            core,
            name,
            deliver=self._deliver,
            free=self._hand_over,
            broken=self._break,
            forgotten=self._fail_forgotten,
        )

    def start(self) -> None:
        """See Engine."""
        self._loop = asyncio.get_running_loop()
        self._thread.start(self._loop)

    async def close(self) -> None:
        """See Engine."""
        self._failure = self._failure or SHUTTING_DOWN
        self._hand_over()
        await self._thread.close()

    @property
    def failure(self) -> str | None:
        """Why the engine does not run; None while it does."""
        if self._failure is None and self._thread.ended:
            return "the engine's thread has ended"
        return self._failure

    def describe(self) -> Description:
        """See Engine."""
        controller = self._controller
        return Description(
            failure=self.failure,
            max_rows=controller.max_rows,
            running=controller.running,
            waiting=len(self._streams) - controller.running_requests,
            admitted=controller.taken,
            max_admitted=controller.most(batch=False),
            max_admitted_batch=controller.most(batch=True),
            held_seconds=controller.queue_time.held_seconds,
        )

    def admit(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> Admission:
        """See Engine."""
        if rows > self._controller.max_rows:
            raise BeamTooWide(f"the beam is {rows:,} rows wide; allowed are {self._controller.max_rows:,}")
        if rows:
            self.check_room(rows, urgency, queued=queued)
            self._came(urgency)
        else:
            self._check_live()
            self._live += 1
        deadline_seconds = self._deadline_seconds if rows else math.inf  # a live sequence lives as long as its client
        place = Admission(self, rows, urgency, deadline_seconds, self._clock())
        self._controller.take(rows, batch=urgency.batch)
        self._admitted[place] = None
        return place

    def _check_live(self) -> None:
        """Hold that there may be one more live sequence, which has no row."""
        if self.failure is not None:
            raise EngineStopped(self.failure)
        if self._live >= self._max_live:
            raise EngineFull(f"{self._live:,} raw streams run; allowed are {self._max_live:,}", 0.0)

    def check_room(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> None:
        """See Engine."""
        if self.failure is not None:
            raise EngineStopped(self.failure)
        try:
            self._controller.check(rows, urgency, queued=queued)
        except EngineFull as refusal:
            self._came(urgency, refusal)
            raise

    def moment(self) -> Moment:
        """Now."""
        return Moment(self._clock(), self._steps, self._step_rows)

    def _came(self, urgency: Urgency, refusal: EngineFull | None = None) -> None:
        """Note that somebody asked for rows. When an overload begins with that, who waits behind a short queue ends."""
        on = self._controller.overload.on
        if self._controller.came(urgency, refusal):
            behind = self._behind_short()
            logger.warning(
                "%s: more come than can be served; %s who wait are refused", self._thread.name, f"{len(behind):,}"
            )
            self._refuse(behind)
        elif on and not self._controller.overload.on:
            logger.warning("%s: no more come than can be served", self._thread.name)

    def _refuse(self, places: list[tuple[Admission, float]]) -> None:
        """End those of them who still wait, some at a time."""
        for place, wait_seconds in places[:ENDED_TOGETHER]:
            if place.waits:
                message = f"more come than can be served, and a row would be free in {wait_seconds:.3g} s"
                place.end(WaitTooLong(message, wait_seconds))
        if len(places) > ENDED_TOGETHER:
            assert self._loop is not None
            self._loop.call_later(ENDED_EVERY_SECONDS, self._refuse, places[ENDED_TOGETHER:])

    def _behind_short(self) -> list[tuple[Admission, float]]:
        """Those for whom there is no row and no room in a short queue, batch apart; and how long they would wait."""
        controller = self._controller
        free = controller.max_rows - controller.running
        rows, behind = 0, []
        for place in self._admitted:
            if place.waits and not place.batch:
                rows += place.rows
                if rows > free + controller.short or not controller.is_short(rows):
                    behind.append((place, controller.wait_seconds(rows)))
        return behind

    def leave(self, place: Admission) -> None:
        """Take a place back (Admission does it)."""
        self._admitted.pop(place, None)
        self._live -= not place.rows
        self._controller.leave(place.rows, batch=place.batch, started=place.started)
        if not self._admitted:
            self._vacant.set()

    async def vacated(self) -> None:
        """See Engine."""
        while self._admitted:
            self._vacant.clear()
            await self._vacant.wait()

    def submit(
        self, request: Request, place: Place, on_overflow: Callable[[], None], sink: TokenSink | None
    ) -> TokenStream:
        """See Engine."""
        if place.started:
            self._controller.submit(place.rows, batch=place.batch)
        id = next(self._ids)

        def end_slow_reader() -> None:
            self.cancel(id)
            on_overflow()

        silent = request.buffered or not request.head.streams
        stream = self._streams[id] = TokenStream(id, end_slow_reader, sink, silent=silent)
        self._places[id] = place, request
        self._command(Add(id, request, place.batch))
        return stream

    def feed(self, id: int, fed: Fed | None) -> None:
        """See Engine."""
        if id in self._streams:
            self._command(Feed(id, fed))

    def cancel(self, id: int) -> None:
        """See Engine."""
        if id in self._streams:
            self._command(Cancel(id))

    def end(self, id: int, ended: Ended) -> None:
        """End a request before its time, unless it has ended, and tell its reader at once."""
        stream = self._streams.get(id)
        if stream is None or stream.finished:
            return
        stream.put(ended)
        if stream.timeline is not None:
            stream.timeline.reason = ended.reason
        self._command(Cancel(id))

    def _command(self, command: Command) -> None:
        """Note a command, and hand all of them over at the end of the event loop's iteration.

        Requests that arrive together so join in one step, instead of the first running ahead alone.
        """
        self._outbox.append(command)
        if len(self._outbox) == 1:
            assert self._loop is not None
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self._thread.busy_here:  # which calls again
            return
        commands, self._outbox = self._outbox, []
        if not self._thread.step_here(commands):
            self._thread.hand_over(commands)
        elif self._thread.more_here:
            assert self._loop is not None
            self._loop.call_soon(self._hand_over)

    def _deliver(self, output: StepOutput, reports: list[StepReport]) -> None:
        """On the event loop: hand a step's events to their streams."""
        self._thread.delivered()
        self._steps += len(reports)
        self._step_rows += sum(report.rows for report in reports)
        streams, batch = self._streams, output.batch
        for id, at, asked in output.joined:
            self._join(id, at, asked)
        if batch is not None:
            last = {id for id, _ in output.finished}
            if batch.plain:
                for id, token, logprob in zip(batch.ids, batch.tokens, batch.logprobs, strict=True):
                    streams[id].put_token(Told(token, logprob), id in last)
            else:
                self._deliver_more(batch, last)
        for id, answer in output.answers:
            streams[id].put_token(answer, False)
        for id, ended in output.finished:
            self._finish(id, ended)
        self._on_steps(reports)

    def _deliver_more(self, batch: TokenBatch, last: set[int]) -> None:
        """Tokens, some of which come with more."""
        alternatives, attention, checkpoints = batch.alternatives, batch.attention, batch.checkpoints
        for place, (id, token, logprob) in enumerate(zip(batch.ids, batch.tokens, batch.logprobs, strict=True)):
            told = Told(
                token, logprob, alternatives.get(place, ()), attention.get(place), checkpoints.get(place, NOTHING)
            )
            self._streams[id].put_token(told, id in last)

    def _join(self, id: int, at: float, asked: int) -> None:
        place, stream = self._places[id][0], self._streams[id]
        stream.joined_at = at
        if stream.timeline is not None:
            stream.timeline.joined_at = at
        self._controller.joined(id, Held(at, asked, place.rows), batch=place.batch)

    def _finish(self, id: int, ended: Ended) -> None:
        """A request has ended, and its rows are free."""
        stream, (place, request) = self._streams.pop(id), self._places.pop(id)
        stream.put(ended)
        if stream.timeline is not None:
            stream.timeline.ended = self.moment()
            stream.timeline.reason = stream.timeline.reason or ended.reason
            stream.timeline.new_tokens = ended.counts.new
        self._controller.ended(id, place.rows, batch=place.batch)
        if place.on_end is not None:
            place.on_end(request, ended)

    def _break(self, reason: str) -> None:
        """The thread fails."""
        self._failure = reason

    def _fail_forgotten(self) -> None:
        """End the requests that the core never heard of, or could not end."""
        self._outbox.clear()
        for id, (_, request) in [*self._places.items()]:
            self._finish(id, Ended(FinishReason.FAILED, self.failure or "", counts=Counts(request.consumed)))
