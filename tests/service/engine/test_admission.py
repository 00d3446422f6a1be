"""Who is let in, who goes first, and when it is too late."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from service.engine.admission import EngineFull, WaitTooLong
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore
from service.engine.queue_time import QueueTime, Urgency, retry_after_seconds
from service.engine.scheduler import Scheduler
from service.engine.sequence import BeamParameters, FinishEvent, FinishReason, SamplingParameters, Sequence, TokenEvent

BATCH = Urgency(batch=True)
ENDLESS = SamplingParameters(max_tokens=10**9, temperature=0.0)


def waiting(*, batch=False, width=None):
    beam = None if width is None else BeamParameters(width, 3, 0)
    return Sequence(np.array([1]), ENDLESS if beam is None else None, beam=beam, batch=batch)


@pytest.fixture
def make_engine(runner):
    def make(**options):
        return AsyncEngine(EngineCore(runner, options.pop("max_rows")), on_step=lambda report: None, **options)

    return make


def test_batch_joins_when_nothing_interactive_waits():
    scheduler = Scheduler(3)
    batch, late_batch = waiting(batch=True), waiting(batch=True)
    first, second, third = (waiting() for _ in range(3))
    for sequence in (batch, first, late_batch, second, third):
        scheduler.add(sequence)
    assert [sequence for _, sequence in scheduler.admit()] == [first, second, third]
    scheduler.remove(0)
    assert scheduler.admit() == [(range(2, 3), batch)]
    scheduler.remove(0)
    fourth = waiting()
    scheduler.add(fourth)
    assert scheduler.admit() == [(range(2, 3), fourth)]
    assert not scheduler.withdraw(fourth)
    assert scheduler.withdraw_all() == [late_batch]
    assert not scheduler.waiting_batch


def test_batch_does_not_pass_an_interactive_beam_that_waits_for_its_rows():
    scheduler = Scheduler(3)
    running, wide, small = waiting(), waiting(width=3), waiting(batch=True)
    scheduler.add(running)
    scheduler.admit()
    scheduler.add(small)
    scheduler.add(wide)
    assert scheduler.admit() == []
    assert scheduler.withdraw(wide)
    assert scheduler.admit() == [(range(1, 2), small)]


def test_batch_takes_half_of_the_places_to_wait_in(make_engine):
    engine = make_engine(max_rows=2, max_waiting=5)
    for _ in range(5):
        engine.admit(urgency=BATCH)
    with pytest.raises(EngineFull, match="5 requests run and wait; allowed are 5"):
        engine.admit(urgency=BATCH)
    for _ in range(2):
        engine.admit()
    with pytest.raises(EngineFull, match="7 requests run and wait; allowed are 7"):
        engine.admit()


def test_wait_is_the_time_rows_are_held_times_the_places_ahead_over_the_rows():
    queue = QueueTime(rows=4)
    assert queue.wait_seconds(1_000) == 0  # nobody has ended: nobody knows
    queue.ended(2.0)
    assert [queue.wait_seconds(places) for places in (1, 4, 5, 12)] == [0, 0, 0.5, 4.0]
    for _ in range(200):
        queue.ended(6.0)
    assert queue.wait_seconds(5) == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize(("wait", "seconds"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (1e9, 60)])
def test_retry_after_is_the_wait_in_whole_seconds_up_to_a_minute(wait, seconds):
    assert retry_after_seconds(wait) == seconds


def test_request_that_would_wait_too_long_is_refused_at_once(make_engine):
    engine = make_engine(max_rows=2, max_waiting=100, max_wait_seconds=3.0)
    engine._queue_time.ended(2.0)  # a place in the queue is worth a second
    for _ in range(5):
        engine.admit()
    with pytest.raises(WaitTooLong, match=r"free in 4 s; allowed are 3$") as refused:
        engine.admit()
    assert refused.value.wait_seconds == 4.0
    assert retry_after_seconds(refused.value.wait_seconds) == 4
    engine.leave(2)
    with pytest.raises(WaitTooLong, match=r"free in 2 s; allowed are 1.5$"):
        engine.admit(urgency=Urgency(timeout_seconds=1.5))
    engine.admit(urgency=Urgency(timeout_seconds=2.5))


def test_places_of_the_same_request_are_not_waited_for(make_engine):
    engine = make_engine(max_rows=1, max_waiting=100, max_wait_seconds=0.5)
    engine._queue_time.ended(2.0)
    for place in range(5):
        engine.admit(queued=place)
    with pytest.raises(WaitTooLong):
        engine.admit()


async def last_event(stream):
    while isinstance(event := await stream.get(), TokenEvent):
        pass
    assert isinstance(event, FinishEvent)
    return event


async def test_deadline_ends_who_runs_and_who_waits_and_frees_the_row(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5, deadline_seconds=0.05)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with engine.admit() as runs, engine.admit(urgency=Urgency(timeout_seconds=0.02)) as waits:
                first = runs.start(waiting())
                ends = await asyncio.gather(last_event(first), last_event(waits.start(waiting())))
                assert [end.reason for end in ends] == [FinishReason.DEADLINE] * 2
                assert [end.detail for end in ends] == ["0.05 s are over", "0.02 s are over"]
                async with asyncio.timeout(20):
                    while engine.running:  # noqa: ASYNC110 (nothing signals that a row became free, as it must be)
                        await asyncio.sleep(0)
    finally:
        await engine.close()
    assert (engine.admitted, engine.running, engine.waiting) == (0, 0, 0)


async def test_sequence_started_after_its_deadline_ends_at_once(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with engine.admit(urgency=Urgency(timeout_seconds=1e-9)) as place:
                for _ in range(2):  # a place may run several sequences, one after another
                    assert (await last_event(place.start(waiting()))).reason is FinishReason.DEADLINE
            with engine.admit(urgency=Urgency(timeout_seconds=math.inf)) as place:
                assert isinstance(await place.start(waiting()).get(), TokenEvent)
    finally:
        await engine.close()
