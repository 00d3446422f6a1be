"""Who is let in, who goes first, and when it is too late."""

from __future__ import annotations

import asyncio
import math
from contextlib import ExitStack
from itertools import count

import numpy as np
import pytest

from carousel.service.engine.admission.overload import WINDOW_SECONDS, WINDOWS
from carousel.service.engine.admission.queue_time import Held, QueueTime, retry_after_seconds
from carousel.service.engine.core import EngineCore
from carousel.service.engine.errors import DeadlineExceeded, EngineFull, WaitTooLong
from carousel.service.engine.parameters import BeamParameters, FinishReason, SamplingParameters
from carousel.service.engine.port import Ended, Request, Told, Urgency
from carousel.service.engine.scheduler import Scheduler
from carousel.service.engine.sequence import Sequence
from carousel.service.engine.threads.async_engine import AsyncEngine

BATCH = Urgency(batch=True)
NOW = Urgency()
ENDLESS = SamplingParameters(max_tokens=10**9, temperature=0.0)


def waiting(width=None):
    return Request(np.array([1]), ENDLESS if width is None else BeamParameters(width, 3, 0))


NUMBERS = count()


def queued(*, batch=False, width=None):
    return Sequence(next(NUMBERS), waiting(width), batch=batch)


@pytest.fixture
def make_engine(runner):
    def make(**options):
        return AsyncEngine(EngineCore(runner, options.pop("max_rows")), on_steps=lambda reports: None, **options)

    return make


def test_batch_joins_when_nothing_interactive_waits():
    scheduler = Scheduler(3)
    batch, late_batch = queued(batch=True), queued(batch=True)
    first, second, third = (queued() for _ in range(3))
    for sequence in (batch, first, late_batch, second, third):
        scheduler.add(sequence)
    assert [sequence for _, sequence in scheduler.admit()] == [first, second, third]
    scheduler.remove(0)
    assert scheduler.admit() == [(range(2, 3), batch)]
    scheduler.remove(0)
    fourth = queued()
    scheduler.add(fourth)
    assert scheduler.admit() == [(range(2, 3), fourth)]
    assert not scheduler.withdraw(fourth)
    assert scheduler.withdraw_all() == [late_batch]
    assert not scheduler.waiting_batch


def test_batch_does_not_pass_an_interactive_beam_that_waits_for_its_rows():
    scheduler = Scheduler(3)
    running, wide, small = queued(), queued(width=3), queued(batch=True)
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


def running(*, joined_at, asked, rows=1):
    return [Held(joined_at, asked, rows)]


def wait(queue, held, place, now):
    return queue.wait_seconds(held, place, now, rows=sum(one.rows for one in held))


def test_nobody_waits_for_a_row_that_is_free():
    queue = QueueTime(rows=4)
    queue.ended(2.0, asked=10)
    assert wait(queue, [], 4, now=0.0) == 0
    assert wait(queue, running(joined_at=0.0, asked=10) * 3, 1, now=0.0) == 0


def test_wait_is_till_the_expected_ends_in_their_order():
    queue = QueueTime(rows=4)
    queue.ended(2.0, asked=10)  # 0.2 s for each id that is asked for
    rows = running(joined_at=1.0, asked=40) + running(joined_at=3.0, asked=5) + running(joined_at=2.0, asked=30, rows=2)
    ends = [4.0, 8.0, 8.0, 9.0]
    assert [wait(queue, rows, place, now=3.5) for place in (1, 2, 3, 4)] == [end - 3.5 for end in ends]
    assert wait(queue, rows, 5, now=3.5) == pytest.approx(0.5 + 2.0)  # after one who waits as well, 2 s in the mean
    assert wait(queue, rows, 12, now=3.5) == pytest.approx(5.5 + 2 * 2.0)
    assert wait(queue, rows, 1, now=4.5) == 0  # it should have ended already


def test_place_behind_one_that_takes_a_free_row_waits_as_long_as_rows_are_held():
    queue = QueueTime(rows=2)
    queue.ended(3.0, asked=10)
    assert wait(queue, running(joined_at=0.0, asked=10), 2, now=1.0) == pytest.approx(2.0)
    assert wait(queue, running(joined_at=0.0, asked=10), 3, now=1.0) == pytest.approx(3.0)


def test_until_somebody_has_ended_nobody_knows_and_nobody_waits():
    queue = QueueTime(rows=1)
    rows = running(joined_at=0.0, asked=100)
    assert wait(queue, rows, 1_000, now=0.0) == 0
    queue.ended(10.0, asked=10)
    assert wait(queue, rows, 1, now=2.0) == 98.0


def test_what_is_used_of_what_is_asked_for_is_a_mean_that_moves():
    queue = QueueTime(rows=1)
    queue.ended(1.0, asked=100)
    for _ in range(200):
        queue.ended(6.0, asked=10)
    assert wait(queue, running(joined_at=0.0, asked=20), 1, now=0.0) == pytest.approx(12.0, rel=1e-2)


@pytest.mark.parametrize(("wait", "seconds"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (1e9, 60)])
def test_retry_after_is_the_wait_in_whole_seconds_up_to_a_minute(wait, seconds):
    assert retry_after_seconds(wait) == seconds


def test_request_that_would_wait_too_long_is_refused_at_once(make_engine):
    engine = make_engine(max_rows=2, max_waiting=100, max_wait_seconds=3.0)
    engine._controller.queue_time.ended(2.0, asked=1)  # a round of two takes 2 s
    for _ in range(4):
        engine.admit()
    with pytest.raises(WaitTooLong, match=r"free in 4 s; allowed are 3$") as refused:
        engine.admit(rows=2)
    assert refused.value.wait_seconds == 4.0
    assert retry_after_seconds(refused.value.wait_seconds) == 4
    for place in [*engine._admitted][:2]:
        engine.leave(place)
    with pytest.raises(WaitTooLong, match=r"free in 2 s; allowed are 1.5$"):
        engine.admit(urgency=Urgency(timeout_seconds=1.5))
    engine.admit(urgency=Urgency(timeout_seconds=2.5))


def test_places_of_the_same_request_are_not_waited_for(make_engine):
    engine = make_engine(max_rows=1, max_waiting=100, max_wait_seconds=0.5)
    engine._controller.queue_time.ended(2.0, asked=1)
    for place in range(5):
        engine.admit(queued=place)
    with pytest.raises(WaitTooLong):
        engine.admit()


async def test_place_whose_sequence_has_ended_is_nobody_to_wait_for(make_engine):
    engine = make_engine(max_rows=1, max_waiting=100, max_wait_seconds=0.5)
    engine._controller.queue_time.ended(1e6, asked=1)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with engine.admit() as place:
                with pytest.raises(WaitTooLong):
                    engine.check_room()
                stream = place.start(Request(np.array([1]), SamplingParameters(max_tokens=2, temperature=0.0)))
                await last_event(stream)
                engine.check_room()
                again = place.start(waiting())
                await again.get()
                with pytest.raises(WaitTooLong):
                    engine.check_room()
            await last_event(again)
            engine.check_room()
    finally:
        await engine.close()


def test_nobody_interactive_waits_for_batch(make_engine):
    engine = make_engine(max_rows=8, max_waiting=400, max_wait_seconds=3.0)
    engine._controller.queue_time.ended(2.0, asked=1)
    for _ in range(2):  # so many rows' worth is let in; 18 more had been before anything was known
        engine.admit(rows=8, urgency=BATCH)
    engine._controller.take(18 * 8, batch=True)
    with pytest.raises(WaitTooLong):
        engine.check_room(urgency=BATCH)
    for _ in range(8):
        engine.admit()
    engine.check_room(rows=8)
    engine.admit(rows=8)
    with pytest.raises(WaitTooLong, match="free in 4 s"):
        engine.check_room(rows=8)


def overload(engine):
    """Let the engine see an overload; it begins with the next who comes a window later."""
    overload = engine._controller.overload
    overload._since, overload._windows = engine._clock() - WINDOW_SECONDS, WINDOWS - 1
    overload._short, overload._turned_away = False, 1


async def test_overload_ends_who_waits_or_prepares_but_for_batch(make_engine, runner):
    engine = make_engine(max_rows=1, max_waiting=100)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with ExitStack() as places:
                runs, near, waits, patient = (
                    places.enter_context(engine.admit(urgency=u)) for u in (NOW, NOW, NOW, BATCH)
                )
                first = runs.start(waiting())
                await first.get()
                second, third, fourth = near.start(waiting()), waits.start(waiting()), patient.start(waiting())
                preparing = asyncio.create_task(prepare(engine))
                await asyncio.sleep(0)
                engine._controller.queue_time.ended(1e6, asked=10**9 + 1)  # a row is free in days
                overload(engine)
                with pytest.raises(WaitTooLong, match="allowed are 1e"):
                    engine.admit(urgency=Urgency(timeout_seconds=1e3))
                assert not engine._controller.overload.on  # who is in a hurry says nothing of the others
                with engine.admit():
                    pass
                assert engine._controller.overload.on
                end = await third.get()
                assert end.reason is FinishReason.OVERLOAD
                assert "more come than can be served" in end.detail
                with pytest.raises(WaitTooLong, match="more come than can be served"):
                    await preparing
                with pytest.raises(WaitTooLong, match="more come than can be served"):
                    engine.admit()
                engine.admit(urgency=BATCH).__exit__(None, None, None)
                assert isinstance(await first.get(), Told)
                runs.cancel()
                await last_event(first)
                assert isinstance(await second.get(), Told)  # it was the first to wait
                near.cancel()
                await last_event(second)
                assert isinstance(await fourth.get(), Told)
    finally:
        await engine.close()


async def prepare(engine, urgency=NOW, places=1):
    """A request that is being decoded, and will be for ever."""
    with ExitStack() as stack:
        for place in range(places):
            stack.enter_context(engine.admit(urgency=urgency, queued=place))
        await asyncio.Event().wait()


async def run_on(engine, *, cover):
    """A request that ends after its sequence, later than it may."""
    with engine.admit(urgency=Urgency(timeout_seconds=0.05)) as place:
        stream = place.start(Request(np.array([1]), SamplingParameters(max_tokens=1, temperature=0.0)))
        await last_event(stream)
        if cover:
            place.cover()
        await asyncio.sleep(0.1)


async def test_deadline_covers_what_is_done_before_a_sequence_is_started(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5, deadline_seconds=0.02)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with pytest.raises(DeadlineExceeded, match=r"0\.001 s are over"):
                await prepare(engine, Urgency(timeout_seconds=0.001))
            ends = await asyncio.gather(*(prepare(engine) for _ in range(3)), return_exceptions=True)
            assert [str(end) for end in ends] == ["0.02 s are over"] * 3
            with pytest.raises(DeadlineExceeded):
                await prepare(engine, Urgency(timeout_seconds=0.001), places=3)
            assert asyncio.current_task().cancelling() == 0
    finally:
        await engine.close()
    assert engine.describe().admitted == 0


async def test_deadline_leaves_what_comes_after_the_sequence_alone_unless_it_is_covered(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5)
    engine.start()
    try:
        async with asyncio.timeout(30):
            await run_on(engine, cover=False)
            with pytest.raises(DeadlineExceeded):
                await run_on(engine, cover=True)
    finally:
        await engine.close()


async def test_task_that_is_cancelled_by_others_too_ends_as_cancelled(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5)
    engine.start()
    try:
        task = asyncio.create_task(prepare(engine, Urgency(timeout_seconds=0.001)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        await engine.close()


async def last_event(stream):
    while isinstance(event := await stream.get(), Told):
        pass
    assert isinstance(event, Ended)
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
                    while engine.describe().running:  # noqa: ASYNC110 (nothing signals that a row became free, as it must be)
                        await asyncio.sleep(0)
    finally:
        await engine.close()
    assert (engine.describe().admitted, engine.describe().running, engine.describe().waiting) == (0, 0, 0)


async def test_sequence_started_after_its_deadline_ends_at_once(make_engine):
    engine = make_engine(max_rows=1, max_waiting=5)
    engine.start()
    try:
        async with asyncio.timeout(30):
            with engine.admit(urgency=Urgency(timeout_seconds=1e-9)) as place:
                for _ in range(2):  # a place may run several sequences, one after another
                    assert (await last_event(place.start(waiting()))).reason is FinishReason.DEADLINE
            with engine.admit(urgency=Urgency(timeout_seconds=math.inf)) as place:
                assert isinstance(await place.start(waiting()).get(), Told)
    finally:
        await engine.close()
