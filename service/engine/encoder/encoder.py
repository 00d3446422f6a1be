"""The encoder between threads: images queue up on the event loop, threads of their own prepare and encode what waits.

Each thread prepares one image after another (decodes it, that is) until a batch is ready or none waits any more, and
encodes the batch in one call; then it looks again. Any thread encodes what any has prepared: an image that takes long
to decode holds up one thread, and nobody's batch. A batch is at most as many images as take a short time, by what calls
have taken (encoder_pace.py). Where an image takes so little that threads would mostly be in each other's way they take
turns: one works, and another begins when that one has been at the same piece of work for long. Results come back with
one `call_soon_threadsafe` per call.

Axes: B images of a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carousel.service.engine.encoder.encoding import EncoderReport, EncoderStopped, Encoding, EncodingFailed
from carousel.service.engine.encoder.pace import CALL_SECONDS, Pace
from carousel.service.engine.encoder.together import Alike, Batch, Together, Whole
from carousel.service.engine.parameters import Array
from carousel.service.engine.rows.table import NOT_FINITE
from carousel.service.engine.session import RunnerBroken

logger = logging.getLogger("carousel.encoder")

WARM_UP_CALLS = 3
"""The first of which does what only a first call does."""

PREPARING_SECONDS = 0.002
"""Where threads take turns: how long one may prepare an image before the next begins with another."""

Prepare = Callable[[], Whole]
"""Makes an input ready. What it raises is what the caller of `encode` gets."""

EncoderGraph = Callable[[Batch], Mapping[str, Array]]
"""Images <float32>[B, ...] (or what a Together makes of other inputs) in, the states and the context that their
sequences begin with out, [B, ...] each. It raises whatever the runtime raises."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    prepare: Prepare
    result: asyncio.Future[Encoding]


_Outcome = Encoding | Exception
_Ready = tuple[_Job, Whole]


class Encoder:
    """An encoder graph on threads of its own. Every method but the threads' belongs to the event loop.

    Callers hold a place in the engine (AsyncEngine.admit), which bounds the images that wait.

    Args:
        graph: the encoder.
        image_shape: of one image; or how other inputs share calls.
        states: the names of the states it makes; all else is context.
        workers: threads, each with an image to prepare or a batch to encode: on a CPU more are gained by them than by
            threads within a call.
        on_batch: called on the event loop with each batch's report.
        clock: seconds, monotonic.
        name: of the threads.
        pace: how many images a call takes; found out by the calls, where none is given.
    """

    def __init__(
        self,
        graph: EncoderGraph,
        image_shape: tuple[int, ...] | Together,
        states: frozenset[str],
        *,
        workers: int = 1,
        on_batch: Callable[[EncoderReport], None],
        clock: Callable[[], float] = time.perf_counter,
        name: str = "encoder",
        pace: Pace | None = None,
    ) -> None:
        self._graph: EncoderGraph | None = graph
        """None once closed."""
        self.together = Alike(image_shape) if isinstance(image_shape, tuple) else image_shape
        """How inputs share calls."""
        self._states = states
        self._on_batch = on_batch
        self._clock = clock
        self._pace = pace or Pace()
        self._turns: dict[int, float] = {}
        """Until when each thread that has the turn, by its identity, has it."""
        self._watched = False
        """Whether a thread waits for the last of these moments."""
        self._waiting: deque[_Job] = deque()
        self._waiting_batch: deque[_Job] = deque()
        """Those of batch requests: the first of them is begun with when none of the others waits."""
        self._ready: deque[_Ready] = deque()
        self._ready_at = 0.0
        """When the first of those that are ready was."""
        self._closing = False
        self._failure: str | None = None
        self._wake = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{worker}", daemon=True) for worker in range(workers)
        ]
        self._loop: asyncio.AbstractEventLoop | None = None

    def warm_up(self) -> None:
        """Run the graph on zeros: a few times alone, and once on as many images as it may be given.

        Raises:
            RunnerBroken: it fails.
        """
        for _ in range(WARM_UP_CALLS):
            self._pace.note(1, self._time(1))
        self._time(self._pace.max_batch)

    def start(self) -> None:
        """Start the threads. Called on the event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Stop each thread after the batch it is at; images that wait are refused."""
        self._failure = self._failure or "the server is shutting down"
        self._stop()
        for thread in self._threads:
            if thread.is_alive():
                await asyncio.to_thread(thread.join)
        self._graph = None
        self._refuse_waiting()

    @property
    def failure(self) -> str | None:
        """Why the encoder does not run; None while it does."""
        if self._failure is None and self._loop is not None and not all(map(threading.Thread.is_alive, self._threads)):
            return "a thread of the encoder has ended"
        return self._failure

    @property
    def waiting(self) -> int:
        """Images that nobody has begun with, as of now."""
        return len(self._waiting) + len(self._waiting_batch)

    async def encode(self, prepare: Prepare, *, batch: bool = False) -> Encoding:
        """Prepare and encode one image, with others that wait. A caller that is cancelled takes it from the queue.

        Args:
            prepare: gives the image <float32>, of the preprocessing's shape, or what `Ragged.take` gives; called on
                one of the threads.
            batch: whether it waits for as long as any image waits that is not batch.

        Raises:
            EncodingFailed: the graph fails on this image, or what it makes of it is not finite.
            EncoderStopped: the encoder does not run.
            Exception: whatever `prepare` raised.
        """
        if self.failure is not None:
            raise EncoderStopped(self.failure)
        assert self._loop is not None
        job = _Job(prepare, self._loop.create_future())
        queue = self._waiting_batch if batch else self._waiting
        with self._wake:
            queue.append(job)
            if not (self._watched and self._turns):  # else who has the turn sees it next, or who watches does
                self._wake.notify()
        try:
            return await job.result
        except asyncio.CancelledError:
            with self._wake, contextlib.suppress(ValueError):  # a thread may have begun with it
                queue.remove(job)
            raise

    def _run(self) -> None:
        """A thread: until closed, prepare and encode what waits."""
        jobs: list[_Job] = []
        try:
            while work := self._await_work():
                if isinstance(work, _Job):
                    jobs = [work]
                    self._prepare(work)
                else:
                    jobs = [job for job, _ in work]
                    started = self._clock()
                    outcomes = self._encode([image for _, image in work])
                    report = EncoderReport(len(jobs), self._clock() - started)
                    self._pace.note(report.images, report.seconds)
                    self._post(self._deliver, jobs, outcomes, report)
                    outcomes = []
                jobs, work = [], []  # nothing is kept until the next
        except RunnerBroken as error:
            self._break(jobs, f"the model's encoder is broken ({error})")
        except BaseException as error:  # nothing may end this thread without those who wait being told
            logger.exception("the encoder's thread failed")
            self._break(jobs, f"the encoder failed ({type(error).__name__})")

    def _await_work(self) -> _Job | list[_Ready]:
        """Sleep until there is an image to prepare, or a batch to encode; an empty one once closing."""
        with self._wake:
            self._turns.pop(threading.get_ident(), None)
            while not self._closing:
                if not (self.waiting or self._ready):
                    self._wake.wait()
                elif not self._turns or (left := max(self._turns.values()) - self._clock()) <= 0:
                    return self._take_work()
                elif self._watched:
                    self._wake.wait()
                else:
                    self._watched = True
                    self._wake.wait(left)
                    self._watched = False
            return []

    def _take_work(self) -> _Job | list[_Ready]:
        work: _Job | list[_Ready]
        if self.waiting and len(self._ready) < self._pace.max_batch and not self._overdue():
            work, seconds = (self._waiting or self._waiting_batch).popleft(), PREPARING_SECONDS
        else:
            work, seconds = self._take_batch(), CALL_SECONDS
        if self._pace.in_turns:
            self._turns[threading.get_ident()] = self._clock() + seconds
            if self.waiting and not self._watched:
                self._wake.notify()  # somebody has to watch this one
        return work

    def _take_batch(self) -> list[_Ready]:
        """The first that is ready, and others that may share its call."""
        key = self.together.key(self._ready[0][1])
        batch = [ready for ready in self._ready if self.together.key(ready[1]) == key][: self._pace.max_batch]
        chosen = {id(ready) for ready in batch}
        self._ready = deque(ready for ready in self._ready if id(ready) not in chosen)
        return batch

    def _overdue(self) -> bool:
        """Whether the first image that is ready has waited for others as long as a call may take."""
        return bool(self._ready) and self._clock() - self._ready_at > CALL_SECONDS

    def _prepare(self, job: _Job) -> None:
        try:
            image = job.prepare()
        except Exception as error:
            self._post(self._deliver, [job], [error], None)
            return
        with self._wake:
            if not self._closing:  # nobody need be woken: this thread looks for work next
                if not self._ready:
                    self._ready_at = self._clock()
                self._ready.append((job, image))
                return
        self._post(self._deliver, [job], [EncoderStopped(self.failure)], None)

    def _encode(self, images: Sequence[Whole]) -> list[_Outcome]:
        """Encode a batch; one that fails is tried again image by image.

        Raises:
            RunnerBroken: it fails for every image, and for an image of zeros too.
        """
        assert self._graph is not None
        try:
            return self._split(self.together.rows(images, self._graph(self.together.batch(images))))
        except Exception as error:
            if len(images) > 1:
                return [outcome for image in images for outcome in self._encode([image])]
            self._time(1)
            return [EncodingFailed(f"{type(error).__name__}: {error}")]

    def _split(self, images: Sequence[Mapping[str, Array]]) -> list[_Outcome]:
        """Each image's rows."""
        outcomes: list[_Outcome] = []
        for rows in images:
            sound = all(np.isfinite(row).all() for row in rows.values())
            states = {name: row for name, row in rows.items() if name in self._states}
            context = {name: row for name, row in rows.items() if name not in self._states}
            outcomes.append(Encoding(states, context) if sound else EncodingFailed(NOT_FINITE))
        return outcomes

    def _time(self, count: int) -> float:
        """Encode images of zeros; how many seconds it took.

        Raises:
            RunnerBroken: it fails.
        """
        images = self.together.zeros(count)
        assert self._graph is not None
        started = self._clock()
        try:
            self._graph(images)
        except Exception as error:
            raise RunnerBroken(f"{type(error).__name__}: {error}") from error
        return self._clock() - started

    def _deliver(self, jobs: list[_Job], outcomes: list[_Outcome], report: EncoderReport | None) -> None:
        """On the event loop: hand a batch's results to those who still wait for them."""
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.result.done():
                continue
            if isinstance(outcome, Encoding):
                job.result.set_result(outcome)
            else:
                job.result.set_exception(outcome)
        if report is not None:
            self._on_batch(report)

    def _refuse_waiting(self) -> None:
        with self._wake:
            jobs = [*self._waiting, *self._waiting_batch, *(job for job, _ in self._ready)]
            self._waiting.clear()
            self._waiting_batch.clear()
            self._ready.clear()
        self._deliver(jobs, [EncoderStopped(self.failure) for _ in jobs], None)

    def _stop(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    def _break(self, jobs: list[_Job], reason: str) -> None:
        self._failure = reason
        self._stop()
        self._post(self._deliver, jobs, [EncoderStopped(reason) for _ in jobs], None)
        self._post(self._refuse_waiting)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *arguments)
