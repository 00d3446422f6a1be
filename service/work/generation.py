"""One generation: ids and sampling parameters in, text events out. What every endpoint that samples is made of."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from carousel.models.codec.text import CONTEXT_TOKENS, TextCodec
from carousel.service.engine.admission.queue_time import retry_after_seconds
from carousel.service.engine.errors import DeadlineExceeded, EngineFull, EngineStopped, WaitTooLong
from carousel.service.engine.parameters import Alternative, FinishReason, Ids, SamplingParameters, State
from carousel.service.engine.port import INTERACTIVE, Ended, Events, Place, Request, Snapshot, Told, Urgency
from carousel.service.errors import ServiceError, Unavailable
from carousel.service.keys.caller import current_caller
from carousel.service.observability.requests import WATCHED
from carousel.service.prefixes.prefixes import FROM_ZEROS, Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.work.stop import StopMatcher, stop_condition


@dataclass(slots=True)
class Token:
    """One sampled token. `text` may be empty: what is held back comes with a later token.

    Not frozen: one is made per token, and a frozen one takes four times as long.
    """

    index: int
    token: int
    text: str
    logprob: float
    alternatives: tuple[Alternative, ...]


class TokenTaker(Protocol):
    """Takes tokens the moment they come, on the event loop, in place of whoever reads the events."""

    @property
    def ready(self) -> bool:
        """Whether it can take a token without waiting; else it comes as an event."""
        ...

    def take(self, token: Token) -> None:
        """Take a token."""
        ...


class Collector:
    """Takes every token, for whoever wants them together at the end."""

    ready = True

    def __init__(self, tokens: list[Token]) -> None:
        self.take = tokens.append


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out; `cached_tokens` of the prompt's were not consumed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: the joined texts of all tokens, and the memory to go on from (None where it was not asked for)."""

    reason: FinishReason
    text: str
    usage: Usage
    snapshot: Snapshot | None


@contextmanager
def admit(model: ServedModel, rows: int = 1, urgency: Urgency = INTERACTIVE, *, queued: int = 0) -> Iterator[Place]:
    """A place in the model's engine for a sequence of so many rows, of which the engine has at least as many.

    The request's time runs from here on: what is done in the `with` block before a sequence is started is cancelled
    when it is over, and the block ends with the error.

    Args:
        model: the model.
        rows: of the sequence.
        urgency: how it waits, and how long it may take.
        queued: places that the same request has taken already.

    Raises:
        ServiceError: capacity_exceeded, model_unavailable or deadline_exceeded.
    """
    with refusals(model), model.engine.admit(rows, urgency, queued=queued) as place:
        caller = current_caller()
        if caller.metered:
            place.on_end = lambda request, ended: caller.spend(
                max(0, ended.counts.prompt - request.paid) + ended.counts.new
            )
        place.watched = WATCHED.get()
        yield place


def admit_many(
    places: ExitStack | AsyncExitStack, model: ServedModel, count: int, urgency: Urgency, rows: int = 1
) -> list[Place]:
    """So many places for one request, which `places` gives back; raises what `admit` raises."""
    return [places.enter_context(admit(model, rows, urgency, queued=place * rows)) for place in range(count)]


@contextmanager
def refusals(model: ServedModel) -> Iterator[None]:
    """Turn the engine's refusal of a place, or its early end, into the error that a client is told, and count it."""
    try:
        yield
    except EngineFull as error:
        raise _full(model, error) from None
    except EngineStopped as error:
        raise Unavailable("model_unavailable", f"{model.name}: {error}", 1) from None
    except DeadlineExceeded as error:
        raise _late(model, str(error)) from None


def _full(model: ServedModel, error: EngineFull) -> ServiceError:
    model.metrics.shed[error.reason].inc()
    seconds = retry_after_seconds(error.wait_seconds)
    message = f"{model.name}: {error}; try again in {seconds} s"
    return Unavailable("capacity_exceeded", message, seconds)


def _late(model: ServedModel, detail: str) -> ServiceError:
    model.metrics.shed["deadline"].inc()
    return ServiceError("deadline_exceeded", f"{model.name}: {detail}; ask for less, or for more time")


class Generation:
    """Runs one sequence and turns its events into text.

    Args:
        model: the model.
        admission: the place taken for it.
        prompt: <int64>[N]
        sampling: how to sample.
        stops: strings that end the text, read as a prompt would be; the text ends before them.
        snapshot: memory to go on from; None starts from zeros.
        cache_salt: prompts with another one are not met; a prompt after a snapshot meets none.
        context: ids before the prompt that the detokeniser should know, where there is a snapshot.
        keep_state: whether the end brings a snapshot.
        keep_prompt: whether that snapshot, and the context, forget what was sampled.
        beginning: how to start where somebody else has consumed all but the last id, and pays for the prompt.
        on_consumed: called once the prompt is consumed, or will not be, with how others may start who go on from it.
        on_overflow: called when the events are read too slowly and the generation was ended; whoever reads them may
            be stuck in a send for as long as the client likes.
    """

    def __init__(
        self,
        model: ServedModel,
        admission: Place,
        prompt: Ids,
        sampling: SamplingParameters,
        stops: list[str],
        *,
        snapshot: Snapshot | None = None,
        cache_salt: str | None = None,
        context: Ids | None = None,
        keep_state: bool = False,
        keep_prompt: bool = False,
        beginning: Beginning | None = None,
        on_consumed: Callable[[Beginning], None] | None = None,
        on_overflow: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._admission = admission
        self._on_overflow = on_overflow
        self._context = (prompt if context is None else np.concatenate([context, prompt]))[-CONTEXT_TOKENS:]
        codec = model.bundle.codec(TextCodec)
        stops = [codec.as_written(stop) for stop in stops]
        self._detokenizer = codec.detokenizer(self._context.tolist())
        self._matcher = StopMatcher(stops)
        self._prompt_tokens = len(prompt)
        begun = Beginning(snapshot=snapshot)
        if snapshot is None and beginning is None:
            begun = model.prefixes.begin(prompt, cache_salt)
        self._beginning = begun
        self._on_consumed = on_consumed
        self.cached_tokens = begun.length
        consumes = prompt if snapshot is None else np.concatenate([snapshot.pending, prompt])
        start, last = beginning or begun, len(consumes) - 1
        self._request = Request(
            consumes,
            sampling,
            stop=stop_condition(stops, codec.detokenizer(self._context.tolist())),
            snapshot=start.snapshot,
            keep_state=keep_state,
            keep_prompt=keep_prompt,
            checkpoints=begun.checkpoints if on_consumed is None else tuple(sorted({*begun.checkpoints, last})),
            consumed=start.length,
            paid=paid_before(snapshot) if beginning is None else len(consumes),
        )
        self._tokens: deque[int] = deque(maxlen=CONTEXT_TOKENS)
        self._texts: list[str] = []
        self._last_at = 0.0
        self._cancelled = False

    def cancel(self) -> None:
        """End early, whether the events are read already or not: the last one is Finished."""
        self._cancelled = True
        self._admission.cancel()

    @property
    def context(self) -> Ids:
        """The last ids of prompt and tokens so far: what a generation that goes on from here gives its detokeniser."""
        if self._request.keep_prompt:
            return self._context
        return np.concatenate([self._context, np.array(self._tokens, np.int64)])[-CONTEXT_TOKENS:]

    def _start(self, taker: TokenTaker | None) -> Events:
        def hand_over(event: Told) -> bool:
            if taker is None or not taker.ready:
                return False
            taker.take(self._token(event))
            return True

        stream = self._admission.start(self._request, self._overflowed, hand_over if taker else None)
        if self._cancelled:
            self._admission.cancel()
        return stream

    async def events(self, taker: TokenTaker | None = None) -> AsyncIterator[Token | Finished]:
        """The tokens, then Finished.

        Args:
            taker: is given each token as soon as it is there, as long as it is ready and somebody waits for events;
                what it has taken is no event any more. The last token always is one.

        Raises:
            ServiceError: slow_reader, step_failed or model_unavailable.
        """
        # Not kept: the stream knows this generation, and a circle would keep both until the garbage is collected.
        stream = self._start(taker)
        while isinstance(event := await stream.get(), Told):
            end = stream.ended_with
            yield self._token(event, cut_off=end is not None and end.reason is FinishReason.LENGTH)
        assert isinstance(event, Ended)
        usage = Usage(self._prompt_tokens, len(self._texts), self.cached_tokens)
        raise_for(self._model, event)
        if not self._texts:
            self._prompt_consumed(event.checkpoints)
        yield Finished(event.reason, "".join(self._texts), usage, event.snapshot)

    def _token(self, event: Told, cut_off: bool = False) -> Token:
        """What a sampled token adds to the text; with all that was held back, where the text is `cut_off` after it."""
        count = len(self._texts)
        self._last_at = measure_token(self._model, self._admission, count, self._last_at)
        self._tokens.append(event.token)
        text = self._matcher.push(self._detokenizer.push(event.token))
        if cut_off:
            text += self._matcher.flush()
        self._texts.append(text)
        if count == 0:
            self._prompt_consumed(event.checkpoints)
        return Token(count, event.token, text, event.logprob, event.alternatives)

    def _prompt_consumed(self, checkpoints: Mapping[int, State]) -> None:
        """The prompt has been consumed, or never will be: let others go on from what it led to."""
        prompt = self._request.prompt
        self._beginning.keep(checkpoints)
        on_consumed, self._on_consumed = self._on_consumed, None
        if on_consumed is not None:
            state = checkpoints.get(len(prompt) - 1)
            on_consumed(FROM_ZEROS if state is None else after_all(prompt, state))

    def _overflowed(self) -> None:
        self._model.metrics.shed["slow_reader"].inc()
        self._on_overflow()


def after_all(prompt: Ids, state: State) -> Beginning:
    """How a sequence starts whose prompt has led to this state, but for its last id."""
    last = len(prompt) - 1
    return Beginning(last, Snapshot(state, prompt[last:]))


def paid_before(snapshot: Snapshot | None) -> int:
    """How many ids that a memory has not consumed were charged for: the last that was sampled or weighed. (What is left
    of a prompt that was cancelled was not.)"""
    return int(snapshot is not None and len(snapshot.pending) == 1)


def measure_token(model: ServedModel, admission: Place, count: int, last_at: float) -> float:
    """Record how long a token took that has come just now, `count` having come before it; when that was."""
    now, metrics = time.perf_counter(), model.metrics
    if count == 0:
        metrics.time_to_first_token_seconds.observe(now - admission.admitted_at)
        metrics.queued(admission)
        admission.note_first_token()
    else:
        metrics.inter_token_seconds.observe(now - last_at)
    return now


async def run_to_end(model: ServedModel, admission: Place, request: Request) -> Ended:
    """Run a request of which nothing is told before its end, to that.

    Raises:
        ServiceError: step_failed, deadline_exceeded or model_unavailable.
        EngineStopped: `admit` turns it into model_unavailable.
    """
    event = await admission.start(request).get()
    assert isinstance(event, Ended)
    raise_for(model, event)
    return event


def raise_for(model: ServedModel, event: Ended) -> None:
    """Turn an end that is a failure into the error that a client is told."""
    if event.reason is FinishReason.SLOW_READER:
        raise ServiceError("slow_reader", f"the stream was not read fast enough: {event.detail}")
    if event.reason is FinishReason.DEADLINE:
        raise _late(model, event.detail)
    if event.reason is FinishReason.OVERLOAD:
        raise _full(model, WaitTooLong(event.detail, model.engine.describe().held_seconds))
    if event.reason is FinishReason.FAILED:
        failure = model.engine.describe().failure
        if failure is not None:
            raise Unavailable("model_unavailable", f"{model.name}: {failure}", 1)
        raise ServiceError("step_failed", f"{model.name} failed on this request: {event.detail}")
