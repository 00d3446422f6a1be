"""The engine between two threads: the event loop asks and listens, the engine's own thread steps.

The engine's thread runs while onnxruntime has released the interpreter's lock. The two exchange one
`call_soon_threadsafe` per step, never per token, and wake each other by condition, never by sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from carousel.models.cores import usable_cores
from carousel.service.engine.admission.admission import Admission
from carousel.service.engine.admission.places import Places
from carousel.service.engine.admission.queue_time import INTERACTIVE, Urgency
from carousel.service.engine.core import EngineCore
from carousel.service.engine.errors import BeamTooWide, EngineFull, EngineStopped, WaitTooLong
from carousel.service.engine.prefill.thread import PrefillThread
from carousel.service.engine.sequence import (
    FinishEvent,
    FinishReason,
    Mark,
    Sequence,
    StepOutput,
    StepReport,
    TokenEvent,
)
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.streams.token_stream import TokenSink, TokenStream

logger = logging.getLogger("carousel.engine")

MAX_UNDELIVERED_STEPS = 8
"""Steps the engine may be ahead of an event loop that is busy; then it waits."""

MAX_HELD_REPORTS = 64
"""Steps that gave nobody a token are reported together with the next that did: a prompt need not wake the event loop
at each of its tokens. This many at most."""

ENDED_TOGETHER = 8
ENDED_EVERY_SECONDS = 0.005
"""Of the thousand who may wait when an overload begins, so many are told at a time: tokens go out in between."""

Command = tuple[Literal["add", "cancel"], Sequence]


class AsyncEngine:
    """An EngineCore on a thread of its own. Every method but the thread's belongs to the event loop.

    Args:
        core: the engine, warm.
        max_waiting: sequences that may wait for a row; a beam counts as many as it is wide.
            Half of the places to wait in are not for batch sequences.
        on_steps: called on the event loop with the reports of steps, each once.
        name: of the thread.
        max_wait_seconds: nobody is let in who is to wait longer for a row, by the pace of those who ended last.
        deadline_seconds: from a place's taking on, after which what is done in it is ended.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        core: EngineCore,
        *,
        max_waiting: int,
        on_steps: Callable[[list[StepReport]], None],
        name: str = "engine",
        max_wait_seconds: float = math.inf,
        deadline_seconds: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._core: EngineCore | None = core
        """None once closed: whoever still knows the engine then does not keep its memory."""
        self._scheduler = core.scheduler
        self._clock = clock
        self._places = Places(core.scheduler, max_waiting, min(max_wait_seconds, deadline_seconds), clock)
        self._deadline_seconds = deadline_seconds
        self._on_steps = on_steps
        self._steps = self._step_rows = 0
        self._vacant = asyncio.Event()
        self._admitted: dict[Admission, None] = {}
        """Who has a place, in the order in which they were let in."""
        self._streams: dict[Sequence, TokenStream] = {}
        self._outbox: list[Command] = []
        """Commands of this iteration of the event loop, which go to the thread together."""
        self._commands: list[Command] = []
        self._undelivered = 0
        self._reports: list[StepReport] = []
        """Of steps that told nobody anything."""
        self._closing = False
        self._failure: str | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prefill_thread: PrefillThread | None = None
        """None where there is one core alone; and once closed, like the core."""
        if usable_cores() > 1:
            self._prefill_thread = PrefillThread(core.prefill, lambda: bool(self._scheduler.running), f"{name}-prefill")

    def start(self) -> None:
        """Start the thread. Called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        if self._prefill_thread is not None:
            self._prefill_thread.start()

    async def close(self) -> None:
        """End every sequence and stop the thread."""
        self._failure = self._failure or "the server is shutting down"
        self._hand_over()
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        if self._prefill_thread is not None:
            await asyncio.to_thread(self._prefill_thread.close)
        self._core = self._prefill_thread = None

    @property
    def failure(self) -> str | None:
        """Why the engine does not run; None while it does."""
        if self._failure is None and self._loop is not None and not self._thread.is_alive():
            return "the engine's thread has ended"
        return self._failure

    @property
    def admitted(self) -> int:
        """Places that were taken and have not been left: one for each row that a sequence has or waits for."""
        return self._places.taken

    @property
    def running(self) -> int:
        """Rows in use, as of now."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for their rows, as of now."""
        return len(self._scheduler.waiting) + len(self._scheduler.waiting_batch)

    def max_admitted(self, *, batch: bool = False) -> int:
        """Places there are: rows, and rows waited for."""
        return self._places.most(batch=batch)

    @property
    def held_seconds(self) -> float:
        """How long a row is held in the mean, which is how long a round of the queue takes."""
        return self._places.queue_time.held_seconds

    @property
    def max_rows(self) -> int:
        """Rows there are."""
        return self._scheduler.max_rows

    def admit(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> Admission:
        """Take a place for one sequence, before anything expensive is done for it.

        Args:
            rows: that the sequence will have, each a place.
            urgency: how it waits, and how long it may take.
            queued: places that the same request has taken already: it does not wait for others on account of them.

        Raises:
            EngineFull: all places are taken, or fewer are free, or (WaitTooLong) a row would come too late.
            EngineStopped: the engine does not run.
            BeamTooWide: there are not so many rows.
        """
        if rows > self.max_rows:
            raise BeamTooWide(f"the beam is {rows:,} rows wide; allowed are {self.max_rows:,}")
        self.check_room(rows, urgency, queued=queued)
        self._came(urgency)
        place = Admission(self, rows, urgency, self._deadline_seconds, self._clock())
        self._places.take(rows, batch=urgency.batch)
        self._admitted[place] = None
        return place

    def check_room(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> None:
        """Hold that `admit` would take a place now. It raises what that raises."""
        if self.failure is not None:
            raise EngineStopped(self.failure)
        try:
            self._places.check(rows, urgency, queued=queued)
        except EngineFull as refusal:
            self._came(urgency, refusal)
            raise

    def mark(self) -> Mark:
        """Now."""
        return Mark(self._clock(), self._steps, self._step_rows)

    def _came(self, urgency: Urgency, refusal: EngineFull | None = None) -> None:
        """Note that somebody asked for rows. When an overload begins with that, who waits behind a short queue ends."""
        on = self._places.overload.on
        if self._places.came(urgency, refusal):
            behind = self._behind_short()
            logger.warning(
                "%s: more come than can be served; %s who wait are refused", self._thread.name, f"{len(behind):,}"
            )
            self._refuse(behind)
        elif on and not self._places.overload.on:
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
        places, free = self._places, self.max_rows - len(self._scheduler.running)
        rows, behind = 0, []
        for place in self._admitted:
            if place.waits and not place.batch:
                rows += place.rows
                if rows > free + places.short or not places.is_short(rows):
                    behind.append((place, places.wait_seconds(rows)))
        return behind

    def leave(self, place: Admission) -> None:
        """Take a place back (Admission does it)."""
        self._admitted.pop(place, None)
        self._places.leave(place.rows, batch=place.batch, started=place.started)
        if not self._places.taken:
            self._vacant.set()

    async def vacated(self) -> None:
        """Wait until every place has been left."""
        while self._places.taken:
            self._vacant.clear()
            await self._vacant.wait()

    def submit(
        self, sequence: Sequence, on_overflow: Callable[[], None], sink: TokenSink | None, *, first: bool
    ) -> TokenStream:
        """Start a sequence (through an Admission).

        Args:
            sequence: what to run.
            on_overflow: called when its reader has fallen too far behind.
            sink: takes tokens past the stream.
            first: whether its place had none before.
        """
        if not first:
            self._places.submit(sequence)

        def end_slow_reader() -> None:
            self.cancel(sequence)
            on_overflow()

        stream = TokenStream(end_slow_reader, sink, whole=sequence.whole or sequence.sampling is None)
        self._streams[sequence] = stream
        self._command("add", sequence)
        return stream

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence: its row is free after at most one more step."""
        if sequence in self._streams:
            self._command("cancel", sequence)

    def end(self, sequence: Sequence, event: FinishEvent) -> None:
        """End a sequence before its time, unless it has ended, and tell its reader at once."""
        stream = self._streams.get(sequence)
        if stream is None or stream.finished:
            return
        stream.put(event)
        if sequence.marks is not None:
            sequence.marks.reason = event.reason
        self._command("cancel", sequence)

    def _command(self, verb: Literal["add", "cancel"], sequence: Sequence) -> None:
        """Note a command, and hand all of them over at the end of the event loop's iteration.

        Requests that arrive together so join in one step, instead of the first running ahead alone.
        """
        self._outbox.append((verb, sequence))
        if len(self._outbox) == 1:
            assert self._loop is not None
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        commands = self._outbox.copy()
        self._outbox.clear()
        with self._wake:
            self._commands += commands
            self._wake.notify()
        if self._prefill_thread is not None:  # at once, not before the next step
            self._prefill_thread.begin(sequence for verb, sequence in commands if verb == "add")

    def _deliver(self, output: StepOutput, reports: list[StepReport]) -> None:
        """On the event loop: hand a step's events to their streams."""
        with self._wake:
            self._undelivered -= 1
            if self._undelivered == MAX_UNDELIVERED_STEPS - 1:
                self._wake.notify()
        self._steps += len(reports)
        self._step_rows += sum(report.rows for report in reports)
        streams, batch = self._streams, output.batch
        if batch is not None:
            last = {sequence for sequence, _ in output.finished}
            alternatives, attention = batch.alternatives, batch.attention
            for place, (sequence, token, logprob) in enumerate(
                zip(batch.sequences, batch.tokens, batch.logprobs, strict=True)
            ):
                event = TokenEvent(token, logprob, alternatives.get(place, ()), attention.get(place))
                streams[sequence].put_token(event, sequence in last)
        for sequence, end in output.finished:
            streams.pop(sequence).put(end)
            if sequence.marks is not None:
                sequence.marks.ended = self.mark()
                sequence.marks.reason = sequence.marks.reason or end.reason
            self._places.ended(sequence)
            if sequence.on_end is not None:
                sequence.on_end(sequence)
        self._on_steps(reports)

    def _run(self) -> None:
        """The thread: until closed, take commands, step, post what came of it."""
        core = self._core
        assert core is not None
        try:
            with np.errstate(all="ignore"):  # a row of NaN is that row's failure, not a warning
                while self._await_work():
                    self._tell(core.step())
            self._tell(core.fail_all("the server is shutting down"))
        except RunnerBroken as error:
            self._break(core, f"the model's runner is broken ({error})")
        except BaseException as error:  # nothing may end this thread without its streams being told
            logger.exception("the engine's thread failed")
            self._break(core, f"the engine failed ({type(error).__name__})")

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False once closing."""
        core = self._core
        assert core is not None
        with self._wake:
            self._wake.wait_for(
                lambda: (
                    self._closing or (self._undelivered < MAX_UNDELIVERED_STEPS and (self._commands or not core.idle))
                )
            )
            commands, self._commands = self._commands, []
        for verb, sequence in commands:
            if verb == "add":
                core.add(sequence)
            else:
                core.cancel(sequence)
        return not self._closing

    def _tell(self, output: StepOutput) -> None:
        """Hand over what a step told, with the reports of all steps since the last time."""
        if output.report is not None:
            self._reports.append(output.report)
        if output.batch is None and not output.finished and len(self._reports) < MAX_HELD_REPORTS:
            return
        reports, self._reports = self._reports, []
        assert self._loop is not None
        with self._wake:
            self._undelivered += 1
        try:
            self._loop.call_soon_threadsafe(self._deliver, output, reports)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._closing = True

    def _break(self, core: EngineCore, reason: str) -> None:
        self._failure = reason
        with contextlib.suppress(Exception):  # its tables may be what is broken
            self._tell(core.fail_all(reason))
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._fail_streams, reason)

    def _fail_streams(self, reason: str) -> None:
        """End the streams of sequences that the core never heard of."""
        for sequence, stream in self._streams.items():
            stream.put(FinishEvent(FinishReason.FAILED, reason))
            if sequence.on_end is not None:
                sequence.on_end(sequence)
            self._places.ended(sequence)
        self._streams.clear()
