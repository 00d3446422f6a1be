"""Overload through the real admission: an engine whose rows are held for a second each, on a clock that is moved."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random

import numpy as np
import pytest

from carousel.service.engine.admission.controller import SHORT
from carousel.service.engine.admission.overload import FEW, WINDOW_SECONDS, WINDOWS, Overload
from carousel.service.engine.core import EngineCore
from carousel.service.engine.errors import EngineFull
from carousel.service.engine.parameters import FinishReason, SamplingParameters
from carousel.service.engine.port import Ended, Request, Urgency
from carousel.service.engine.scheduler import Scheduler
from carousel.service.engine.sequence import Joined, Sequence, StepOutput
from carousel.service.engine.threads import async_engine
from carousel.service.engine.threads.async_engine import AsyncEngine


def poisson(rate, *, start=0.0, end, seed=1):
    draw = random.Random(seed)
    at = start
    while (at := at + draw.expovariate(rate)) < end:
        yield at


class Engine(AsyncEngine):
    """Its thread is not started: rows are moved here."""

    failure = None


class Rows:
    """Who asks is let in by the engine's admission, waits in its scheduler, and ends `held` seconds after joining."""

    def __init__(self, runner, rows, *, max_waiting=1_024, max_wait_seconds=20.0, held=1.0):
        self.now = 0.0
        self.engine = Engine(
            EngineCore(runner, rows),
            max_waiting=max_waiting,
            max_wait_seconds=max_wait_seconds,
            on_steps=lambda reports: None,
            clock=lambda: self.now,
        )
        self.engine._loop = asyncio.get_running_loop()
        self.held = held
        self.scheduler = Scheduler(rows)
        self.ids = {}
        """Of who is let in: what waits in the scheduler, or runs."""
        self.places = {}
        """Of who is let in: the place, when it came, and whether it goes on."""
        self.served = []
        """When somebody joined, and how long it had waited."""
        self.refused, self.ended, self.began, self.over = [], [], [], []

    def ask(self, urgency=Urgency()):  # noqa: B008 (frozen)
        on = self.overload.on
        try:
            place = self.engine.admit(urgency=urgency)
        except EngineFull:
            self.refused.append(self.now)
        else:
            place.__enter__()
            stream = place.start(Request(np.array([1]), SamplingParameters(max_tokens=9)))
            self.places[stream.id] = (place, stream, self.now)
            self.move()
        if self.overload.on != on:
            (self.over if on else self.began).append(self.now)

    @property
    def overload(self):
        return self.engine._controller.overload

    def move(self):
        """What the engine's thread does at a step."""
        self.engine._hand_over()
        thread = self.engine._thread
        commands, thread._commands = thread._commands, []
        for command in commands:
            if hasattr(command, "request"):
                sequence = self.ids[command.id] = Sequence(command.id, command.request, batch=command.batch)
                self.scheduler.add(sequence)
            elif self.scheduler.withdraw(self.ids[command.id]):
                self.ended.append(self.now)
                self.end(self.ids[command.id], FinishReason.CANCELLED)
        for _, sequence in self.scheduler.admit():
            self.tell(StepOutput([Joined(sequence.id, self.now, sequence.asked)], None, [], None))
            self.served.append((self.now, self.now - self.places[sequence.id][2]))
            heapq.heappush(self.ends, (self.now + self.held, next(self.number), sequence))

    def tell(self, output):
        self.engine._thread._undelivered += 1
        self.engine._deliver(output, [])

    def end(self, sequence, reason):
        self.tell(StepOutput([], None, [(sequence.id, Ended(reason))], None))
        self.places.pop(sequence.id)[0].__exit__(None, None, None)

    def run(self, arrivals, *, returning=0.0, until=float("inf")):
        """Let them come; each who was served asks again with this probability, a moment later."""
        due, draw, self.ends, self.number = list(arrivals), random.Random(2), [], itertools.count()
        heapq.heapify(due)
        while due or self.ends:
            first_due, first_end = (due[0] if due else float("inf")), (self.ends[0][0] if self.ends else float("inf"))
            self.now = min(first_due, first_end)
            if self.now > until:
                break
            if self.now < first_end:
                heapq.heappop(due)
                self.ask()
                continue
            _, _, sequence = heapq.heappop(self.ends)
            self.scheduler.remove(self.scheduler.running.index(sequence))
            self.end(sequence, FinishReason.STOP)
            self.move()
            if draw.random() < returning:
                heapq.heappush(due, self.now + 0.002 * draw.random())
        return self


@pytest.fixture
def rows(runner, monkeypatch):
    monkeypatch.setattr(async_engine, "ENDED_TOGETHER", 10**6)
    return lambda count, **options: Rows(runner, count, **options)


async def test_equal_requests_are_served_in_the_order_in_which_they_came(rows):
    seen = rows(4).run([0.02 * place for place in range(16)])
    assert seen.served == sorted(seen.served)
    assert [now - wait for now, wait in seen.served] == pytest.approx([0.02 * place for place in range(16)])
    assert max(wait for _, wait in seen.served) < 3.0
    assert not seen.refused


@pytest.mark.parametrize(("count", "times"), [(8, 5.0), (128, 2.0), (128, 5.0)])
async def test_overload_is_known_some_windows_after_the_queue_is_full_and_its_queue_is_ended(rows, count, times):
    waiting = 8 * count
    seen = rows(count, max_waiting=waiting).run(poisson(times * count, end=25.0))
    full_at = seen.refused[0]
    assert len(seen.began) == 1
    assert seen.began[0] <= full_at + (WINDOWS + 1) * WINDOW_SECONDS + 0.1
    assert 0.9 * waiting <= len(seen.ended) <= waiting
    assert max(seen.ended) < seen.began[0] + 1.0
    late = sorted(wait for now, wait in seen.served if now > seen.began[0] + 2.0)
    assert late[-1] <= max(SHORT, 1 / count) + 1e-6  # of the second that a row is held
    assert len(late) > 0.97 * count * (25.0 - seen.began[0] - 2.0)  # and as many are served as can be


@pytest.mark.parametrize(("times", "longest"), [(0.5, 0.0), (0.9, 1.0), (0.98, 3.0)])
async def test_load_that_can_be_served_is_no_overload_and_nobody_waits_long(rows, times, longest):
    seen = rows(128).run(poisson(times * 128, end=60.0))
    assert (seen.began, seen.refused, seen.ended) == ([], [], [])
    assert max(wait for _, wait in seen.served) <= longest


@pytest.mark.parametrize("clients", [140, 1_024, 1_152])
@pytest.mark.parametrize("gather_seconds", [1e-9, 0.5, 4.0])
async def test_crowd_that_takes_turns_is_served_without_an_error(rows, clients, gather_seconds):
    crowd = [gather_seconds * place / clients for place in range(clients)]
    seen = rows(128).run(crowd, returning=1.0, until=20.0)
    assert (seen.began, seen.refused, seen.ended) == ([], [], [])
    assert max(wait for _, wait in seen.served) <= (clients - 128) / 128 + 1.5


async def test_crowd_that_is_somewhat_too_large_is_served_but_for_the_excess(rows):
    seen = rows(128).run([0.0005 * place for place in range(1_200)], returning=1.0, until=15.0)
    assert (seen.began, len(seen.refused), seen.ended) == ([], 1_200 - 1_152, [])


async def test_queue_is_bounded_by_the_wait_that_it_means(rows):
    seen = rows(8, max_wait_seconds=2.0).run(poisson(80, end=20.0))
    came_late = [wait for now, wait in seen.served if now - wait > 1.0]  # nothing is known before the first has ended
    assert max(came_late) <= 2.0
    assert len(seen.began) == 1


async def test_overload_ends_when_few_are_turned_away_and_can_begin_again(rows):
    seen = rows(128).run(
        [*poisson(640, end=10.0), *poisson(110, start=10.0, end=30.0), *poisson(640, start=30.0, end=40.0)]
    )
    assert len(seen.began) == 2
    assert len(seen.over) == 1
    assert 10.0 < seen.over[0] < 16.0
    assert not [at for at in seen.refused if seen.over[0] < at < 30.0]


async def test_overload_is_over_after_a_pause(rows):
    seen = rows(128).run([*poisson(640, end=10.0), 60.0, 60.1])
    assert seen.over == [60.0]
    assert not [at for at in seen.refused if at > 10.0]


async def test_batch_waits_on_in_an_overload_and_says_nothing_of_it(rows):
    seen = rows(8, max_waiting=64)
    asked = iter(poisson(60, end=8.0, seed=5))
    patient = [next(asked) for _ in range(20)]
    ask, batch = seen.ask, set(patient)
    seen.ask = lambda: ask(Urgency(batch=seen.now in batch))
    seen.run([*patient, *poisson(60, end=12.0)])
    assert len(seen.began) == 1
    assert len(seen.served) + len(seen.refused) + len(seen.ended) == 20 + len(list(poisson(60, end=12.0)))
    assert not seen.engine.describe().admitted


def test_window_in_which_the_queue_was_short_once_is_none_of_an_overload():
    overload = Overload()
    for hundredth in range(3_000):
        assert not overload.came(hundredth / 100, short=hundredth % 90 == 0, turned_away=True)
    assert not overload.on


def test_overload_goes_on_while_more_than_a_few_are_turned_away():
    overload = Overload()
    for hundredth in range(6_000):
        turned_away = hundredth < 1_000 or hundredth % int(0.8 / FEW) == 0
        overload.came(hundredth / 100, short=False, turned_away=turned_away)
    assert overload.on
