"""The engine's own thread: commands in, what steps tell out.

It runs while onnxruntime has released the interpreter's lock. It and the event loop exchange one `call_soon_threadsafe`
per step, never per token, and wake each other by condition, never by sleep.

Where there are live sequences alone, whose clients wait for every step, the event loop has the core: what came in an
iteration is fed at its end, and the thread only runs what is fed; if that is brief, not even that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from carousel.models.cores import usable_cores
from carousel.service.engine.core import Begun, EngineCore
from carousel.service.engine.fed import Fed
from carousel.service.engine.port import Request, StepReport
from carousel.service.engine.prefill.thread import PrefillThread
from carousel.service.engine.sequence import StepOutput
from carousel.service.engine.session import RunnerBroken

logger = logging.getLogger("carousel.engine")

MAX_UNDELIVERED_STEPS = 8
"""Steps the engine may be ahead of an event loop that is busy; then it waits."""

MAX_HELD_REPORTS = 64
"""Steps that gave nobody a token are reported together with the next that did: a prompt need not wake the event loop
at each of its tokens. This many at most."""

BRIEF_SECONDS = 0.0005
"""Steps of live sequences that are so short are run by the event loop: to wake the thread, and to be woken by it, takes
as long."""

SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class Add:
    """Queue a request."""

    id: int
    request: Request
    batch: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request."""

    id: int


@dataclass(slots=True)
class Feed:
    """Steps of a live sequence. (Not frozen: one is made per frame.)"""

    id: int
    fed: Fed | None


Command = Add | Cancel | Feed


Post = Callable[..., bool]
"""Has the event loop call something; False where nobody listens any more."""


class EngineThread:
    """Runs a core. `start`, `hand_over`, `delivered` and `close` are the event loop's.

    Args:
        core: warm; nobody else's from the start on.
        name: of the thread.
        deliver: called on the event loop with what a step tells, and the reports of all steps since the last time.
            `delivered` is to be called in return.
        free: called on the event loop when what `step_here` has begun is done; it hands over what has come since.
        broken: called on the event loop with the reason when the thread fails, before what that ends is delivered.
        forgotten: called on the event loop after that: whoever has not been told the end by now never will be.
    """

    def __init__(
        self,
        core: EngineCore,
        name: str,
        *,
        deliver: Callable[[StepOutput, list[StepReport]], None],
        free: Callable[[], None],
        broken: Callable[[str], None],
        forgotten: Callable[[], None],
    ) -> None:
        self.core: EngineCore | None = core
        """None once closed: whoever still knows the engine then does not keep its memory."""
        self._deliver = deliver
        self._free = free
        self._broken = broken
        self._forgotten = forgotten
        self._wake = threading.Condition()
        """Of what both sides write: the six that follow."""
        self._commands: list[Command] = []
        self._undelivered = 0
        self._closing = False
        self._asleep = False
        """Whether the thread waits for something to do."""
        self._borrowed = False
        """Whether the event loop has the core."""
        self._begun: Begun | None = None
        """What the thread is to run for it."""
        self._row_seconds = 0.0
        """What a row of a live sequence's step has taken of late."""
        self._reports: list[StepReport] = []
        """Of steps that told nobody anything."""
        self._in_steps = threading.Event()
        """Whether rows are in use, as of the last step."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._prefill_thread: PrefillThread | None = None
        """None where there is one core alone; and once closed, like the core."""
        if usable_cores() > 1:
            self._prefill_thread = PrefillThread(core.prefill, self._in_steps.is_set, f"{name}-prefill")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, and the one that consumes prompts."""
        self._loop = loop
        self._thread.start()
        if self._prefill_thread is not None:
            self._prefill_thread.start()

    @property
    def name(self) -> str:
        """Of the thread."""
        return self._thread.name

    @property
    def ended(self) -> bool:
        """Whether it has been started, and does not run any more."""
        return self._loop is not None and not self._thread.is_alive()

    def hand_over(self, commands: Sequence[Command]) -> None:
        """Commands, to be obeyed before the next step."""
        if self._prefill_thread is not None:  # at once, not before the next step
            for command in commands:
                if isinstance(command, Add):
                    self._prefill_thread.begin(command.id, command.request, batch=command.batch)
        with self._wake:
            self._commands += commands
            self._wake.notify()

    def step_here(self, commands: Sequence[Command]) -> bool:
        """Feed live sequences, and step them, from the event loop, if there is nobody else to step.

        Returns:
            Whether that was done, or has begun. If not, hand `commands` over.
        """
        core = self.core
        if core is None or not all(isinstance(command, Feed) for command in commands):
            return False
        with self._wake:
            # What the thread has told and has not arrived comes before what is told from here.
            if not self._asleep or self._commands or self._undelivered or self._closing or not core.feeds_alone:
                return False
            self._borrowed = True
        try:
            self._obey(core, commands)
            begun = core.begin()
            if begun is None:
                self._tell(core.nothing(), self._call)
            elif begun.rows * begun.length * self._row_seconds < BRIEF_SECONDS:
                with np.errstate(all="ignore"):
                    core.run(begun)
                self._finish(core, begun)
            else:
                with self._wake:
                    self._begun = begun
                    self._wake.notify()
                return True
        except BaseException as error:
            self._break(core, error, self._call)
        self._borrowed = False
        if self._closing:
            self.hand_over([])  # which ends the thread
        return True

    def _finished_here(self, begun: Begun, error: BaseException | None) -> None:
        """On the event loop: the thread has run what was fed."""
        core = self.core
        assert core is not None
        try:
            if error is not None:
                raise error
            self._finish(core, begun)
        except BaseException as failure:
            self._break(core, failure, self._call)
        self._borrowed = False
        self._free()

    def _finish(self, core: EngineCore, begun: Begun) -> None:
        seconds = begun.runner_seconds / (begun.rows * begun.length)
        self._row_seconds += (seconds - self._row_seconds) / 4
        self._tell(core.finish(begun), self._call)

    @property
    def busy_here(self) -> bool:
        """Whether what `step_here` has begun is not done."""
        return self._borrowed

    @property
    def more_here(self) -> bool:
        """Whether `step_here` has left live sequences that have been fed."""
        return not self._borrowed and self._asleep and self.core is not None and not self.core.idle

    def delivered(self) -> None:
        """What a step told has arrived."""
        with self._wake:
            self._undelivered -= 1
            if self._undelivered == MAX_UNDELIVERED_STEPS - 1:
                self._wake.notify()

    async def close(self) -> None:
        """End every request and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        if self._prefill_thread is not None:
            await asyncio.to_thread(self._prefill_thread.close)
        self.core = self._prefill_thread = None

    def _run(self) -> None:
        """The thread: until closed, take commands, step, post what came of it."""
        core = self.core
        assert core is not None
        try:
            with np.errstate(all="ignore"):  # a row of NaN is that row's failure, not a warning
                while self._await_work(core):
                    if self._begun is not None:
                        self._run_for_loop(core, self._begun)
                        continue
                    output = core.step()
                    if core.in_steps != self._in_steps.is_set():
                        (self._in_steps.set if core.in_steps else self._in_steps.clear)()
                    self._tell(output, self._post)
            self._tell(core.fail_all(SHUTTING_DOWN), self._post)
        except BaseException as error:  # nothing may end this thread without its streams being told
            self._break(core, error, self._post)

    def _await_work(self, core: EngineCore) -> bool:
        """Sleep until there is something to do; False once closing."""
        with self._wake:
            self._asleep = True
            self._wake.wait_for(lambda: self._begun is not None if self._borrowed else self._may_go_on(core))
            if self._begun is not None:
                return True
            self._asleep = False
            commands, self._commands = self._commands, []
        self._obey(core, commands)
        return not self._closing

    def _may_go_on(self, core: EngineCore) -> bool:
        if self._closing:
            return True
        return self._undelivered < MAX_UNDELIVERED_STEPS and (bool(self._commands) or not core.idle)

    def _run_for_loop(self, core: EngineCore, begun: Begun) -> None:
        """Run what the event loop has fed; it goes on from there."""
        failure: BaseException | None = None
        try:
            core.run(begun)
        except BaseException as error:
            failure = error
        self._begun = None
        if not self._post(self._finished_here, begun, failure):
            self._borrowed, self._closing = False, True

    @staticmethod
    def _obey(core: EngineCore, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Feed):
                core.feed(command.id, command.fed)
            elif isinstance(command, Add):
                core.add(command.id, command.request, batch=command.batch)
            else:
                core.cancel(command.id)

    def _tell(self, output: StepOutput, post: Post) -> None:
        """Hand over what a step told, with the reports of all steps since the last time."""
        if output.report is not None:
            self._reports.append(output.report)
            if output.report.steps > 1:
                self._reports += [replace(output.report, consumed_ahead=0)] * (output.report.steps - 1)
        if not output.tells and len(self._reports) < MAX_HELD_REPORTS:
            return
        reports, self._reports = self._reports, []
        with self._wake:
            self._undelivered += 1
        if not post(self._deliver, output, reports):
            self._closing = True

    def _break(self, core: EngineCore, error: BaseException, post: Post) -> None:
        """Tell all that the engine has failed, for good."""
        if isinstance(error, RunnerBroken):
            reason = f"the model's runner is broken ({error})"
        else:
            logger.error("the engine's thread failed", exc_info=error)
            reason = f"the engine failed ({type(error).__name__})"
        self._closing = True
        post(self._broken, reason)
        with contextlib.suppress(Exception):  # its tables may be what is broken
            self._tell(core.fail_all(reason), post)
        post(self._forgotten)

    @staticmethod
    def _call(callback: Callable[..., None], *arguments: object) -> bool:
        """What `_post` does, from the event loop's own thread."""
        callback(*arguments)
        return True

    def _post(self, callback: Callable[..., None], *arguments: object) -> bool:
        """Have the event loop call something; False where it is closed, and nobody listens any more."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True
