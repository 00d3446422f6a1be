"""What the rest of the service sees of an engine: what it is asked for, what it tells, and who answers.

All values that cross are frozen: a request is read by the event loop, the engine's thread and the thread that consumes
prompts, and written by nobody. What an engine knows of a running request it tells in events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol

from carousel.service.engine.errors import DeadlineExceeded, EngineFull
from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.parameters import (
    Alternative,
    Array,
    FinishReason,
    Floats,
    HeadParameters,
    Ids,
    Result,
    State,
)
from carousel.service.engine.timeline import Timeline

Checkpoints = Mapping[int, State]
"""States by the number of ids consumed."""

NOTHING: Checkpoints = MappingProxyType({})
"""No states."""

NO_INPUTS: Mapping[str, Array] = MappingProxyType({})
"""Of a model that is fed ids, or nothing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that goes on from one request to the next: one row of every state, and the ids not yet consumed."""

    state: State
    pending: Ids


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # states are long
class Request:
    """What an engine is asked for: ids to consume, and what is to become of the outputs.

    Args:
        prompt: ids to consume, each one that the model takes, at least one; of a model that is fed no ids the numbers
            of its steps. <int64>[N]
        head: what becomes of the outputs.
        end: the id that, once sampled, ends the sequence; None where none does. (A search has an end of its own.)
        stop: called with each sampled id on the engine's thread, and nowhere else; True ends the sequence. It sees ids
            only: what a stop string is, the engine does not know.
        inputs: what a model that is fed no ids is fed at each of these steps, by port (engine/feed.py). [N, ...] each
        snapshot: what to start from; None starts from what the model's sequences begin with.
        context: one row of each part of what the model reads and never rewrites; None gives it zeros. It is no part of
            a snapshot: who goes on from one gives it again.
        attention: whether each token comes with where the model looked, if the model says so.
        buffered: whether what is sampled is told at the end alone: nobody reads it token by token.
        keep_state: whether the end brings a snapshot to go on from, if the head's can.
        keep_prompt: whether that snapshot is the prompt's, its last id not consumed: what was sampled is forgotten.
        checkpoints: after how many ids of the prompt to take a copy of the state, ascending, each less than N.
        consumed: how many ids of the prompt `snapshot` has consumed; they are fed to nobody, and count as seen.
        paid: how many ids of the prompt somebody has been charged for already.
    """

    prompt: Ids
    head: HeadParameters
    end: int | None = None
    stop: Callable[[int], bool] | None = None
    inputs: Mapping[str, Array] = field(default_factory=lambda: NO_INPUTS)
    snapshot: Snapshot | None = None
    context: Mapping[str, Array] | None = None
    attention: bool = False
    buffered: bool = False
    keep_state: bool = False
    keep_prompt: bool = False
    checkpoints: tuple[int, ...] = ()
    consumed: int = 0
    paid: int = 0

    @property
    def wanted(self) -> frozenset[int]:
        """After how many ids of the prompt a copy of the state is wanted: `keep_prompt` needs one, too."""
        return frozenset((*self.checkpoints, *([len(self.prompt) - 1] if self.keep_prompt else [])))


class Told(NamedTuple):
    """One sampled token. (A tuple, because one is made per token: it takes a quarter of a frozen dataclass' time.)

    `logprob` is the natural logarithm of the model's own probability, before penalty, temperature and truncation;
    `attention` is where the step that chose it looked, for a request that asked <float32>[rows, columns];
    `checkpoints`, with the first token, are the states that were asked for, by the number of ids consumed.
    """

    token: int
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
    attention: Floats | None = None
    checkpoints: Checkpoints = NOTHING


class Counts(NamedTuple):
    """How far a request came, its beginning included."""

    prompt: int = 0
    """Ids of the prompt that were consumed, or weighed."""
    new: int = 0
    """Ids that were sampled; of a search, how long its hypotheses grew."""


NO_COUNTS = Counts()


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """The end of a request: the last that it is told.

    Args:
        reason: why. Of a search STOP, or LENGTH where it was cut off.
        detail: of a failure.
        snapshot: what to go on from, where that is to be kept.
        result: what its head gives in the end; None where it did not come to that, or all was told before.
        counts: how far it came.
        checkpoints: the states that were asked for and reached, by the number of ids consumed.
    """

    reason: FinishReason
    detail: str = ""
    snapshot: Snapshot | None = None
    result: Result | None = None
    counts: Counts = NO_COUNTS
    checkpoints: Checkpoints = field(default_factory=lambda: NOTHING)


Event = Told | Answer | Ended

TokenSink = Callable[[Any], bool]
"""Takes a Told or an Answer the moment it comes, without waiting; False where it cannot: then that queues up for the
reader. What it raises, the reader gets."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step cost and did, for whoever keeps figures.

    `runner_seconds` is the part of `step_seconds` spent inside the runner; the rest is the engine's own overhead. A
    beam counts as one sequence: one prompt token or one generated token, in as many rows as it is wide.
    `consumed_ahead` are prompt tokens that no row consumed, since the last step: those of who was about to join.
    """

    rows: int
    prompt_tokens: int
    generated_tokens: int
    step_seconds: float
    runner_seconds: float
    consumed_ahead: int = 0
    steps: int = 1
    """How many there were of this kind, one after another: seconds, rows and tokens are each one's."""

    @property
    def phase(self) -> str:
        """`prefill` when every row consumed prompt, `decode` when every row went on, else `mixed`."""
        if self.generated_tokens == 0:
            return "prefill"
        return "decode" if self.prompt_tokens == 0 else "mixed"


@dataclass(frozen=True, slots=True)
class Urgency:
    """Who goes first, and when it is too late.

    Args:
        batch: waits for as long as any request waits that is not.
        timeout_seconds: from admission to the end; the engine's own bound where that is shorter.
    """

    batch: bool = False
    timeout_seconds: float = math.inf


INTERACTIVE = Urgency()


@dataclass(frozen=True, slots=True)
class Description:
    """An engine as the event loop knows it: as of the last step that was told.

    Args:
        failure: why it does not run; None while it does.
        max_rows: rows there are.
        running: rows in use.
        waiting: requests that wait for their rows.
        admitted: places that are taken: one for each row that a request has, waits for or will ask for.
        max_admitted: places there are.
        max_admitted_batch: places there are for batch requests.
        held_seconds: how long a row is held in the mean, which is how long a round of the queue takes.
    """

    failure: str | None
    max_rows: int
    running: int
    waiting: int
    admitted: int
    max_admitted: int
    max_admitted_batch: int
    held_seconds: float


class Events(Protocol):
    """What a request is told, in order; the last one is Ended."""

    id: int

    async def get(self) -> Event:
        """The next event; waits for it. Not to be called after Ended."""
        ...

    @property
    def ended_with(self) -> Ended | None:
        """If the next event is the last one, that event: it lets a reader treat the last token as such."""
        ...


class Place(Protocol):
    """A place in an engine for one request at a time; a context manager that ends the request when it is left.

    From when it is entered the client's time runs. When that is up, or an overload ends who waits, the request ends;
    or, as long as there has been none, the work on it: the task that has entered is cancelled, and leaving raises why.
    What comes after the request (a session that is written) is not cut off, unless `cover` says so.
    """

    rows: int
    batch: bool
    admitted_at: float
    on_end: Callable[[Request, Ended], None] | None
    """Called with each request that has had this place, once it has ended; later than the place, perhaps."""
    watched: list[Timeline] | None
    """Gets the timeline of each request that has this place; None where nobody wants them."""

    @property
    def started(self) -> bool:
        """Whether a request has had it."""
        ...

    @property
    def joined_at(self) -> float | None:
        """When the request that last had the place got its rows, of `time.perf_counter`; None before."""
        ...

    def start(self, request: Request, on_overflow: Callable[[], None] = ..., sink: TokenSink | None = None) -> Events:
        """Submit the request that the place was taken for.

        Args:
            request: what to run.
            on_overflow: called when its reader has fallen too far behind and the request was ended.
            sink: takes tokens past the events while their reader waits.

        Raises:
            EngineStopped: the engine does not run.
        """
        ...

    def end(self, why: DeadlineExceeded | EngineFull) -> None:
        """Come to an early end, for this reason."""
        ...

    def cover(self) -> None:
        """From here on it is the task again that an early end ends: the request has ended, and much is left to do."""
        ...

    def defer(self) -> None:
        """The request waits for another one of its client: an early end is told when it starts, to whoever reads it."""
        ...

    def cancel(self) -> None:
        """End the request early; its reader still gets Ended."""
        ...

    def note_first_token(self) -> None:
        """The first token has come to its reader."""
        ...

    def __enter__(self) -> Place: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """One model's engine. All of it belongs to the event loop."""

    def start(self) -> None:
        """Begin."""
        ...

    def admit(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> Place:
        """Take a place for one request, before anything expensive is done for it.

        Args:
            rows: that the request will have, each a place.
            urgency: how it waits, and how long it may take.
            queued: places that the same client's request has taken already: it does not wait for others on their
                account.

        Raises:
            EngineFull: all places are taken, or fewer are free, or (WaitTooLong) a row would come too late.
            EngineStopped: the engine does not run.
            BeamTooWide: there are not so many rows.
        """
        ...

    def check_room(self, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> None:
        """Hold that `admit` would take a place now. It raises what that raises."""
        ...

    def submit(self, request: Request, place: Place, on_overflow: Callable[[], None], sink: TokenSink | None) -> Events:
        """Start a request in its place (`Place.start` does it)."""
        ...

    def feed(self, id: int, fed: Fed | None) -> None:
        """Steps for a live sequence, by the id of its events: each Fed is told as an Answer, in order. None ends it
        behind them. Nothing happens if it has ended."""
        ...

    def cancel(self, id: int) -> None:
        """End a request, by the id of its events: its row is free after at most one more step."""
        ...

    def describe(self) -> Description:
        """How it stands."""
        ...

    async def vacated(self) -> None:
        """Wait until every place has been left."""
        ...

    async def close(self) -> None:
        """End every request and stop."""
        ...
