"""Live sequences' steps on the event loop's thread: when they are, and that nothing is lost when they are not."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.parameters import FinishReason, LiveParameters, SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.engine.threads import engine_thread
from carousel.service.engine.threads.async_engine import AsyncEngine

NO_IDS = np.zeros(0, np.int64)
DEADLINE_SECONDS = 30


class Watched:
    """An engine, and on which threads its runner was."""

    def __init__(self, runner, max_rows=4):
        self.threads = []
        runner.fault = self._note
        self.reports = []
        self.engine = AsyncEngine(EngineCore(runner, max_rows), max_waiting=100, on_steps=self.reports.extend)
        self.places = ExitStack()

    def _note(self, state, token):
        if threading.get_ident() not in self.threads:
            self.threads.append(threading.get_ident())

    def open(self, count):
        request = Request(NO_IDS, LiveParameters(("logits",)), keep_state=True)
        return [self.places.enter_context(self.engine.admit(rows=0)).start(request, lambda: None) for _ in range(count)]

    def feed(self, stream, *ids):
        self.engine.feed(stream.id, Fed(len(ids), {"token": np.array(ids, np.int64)}))

    async def __aenter__(self):
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        self.places.close()
        await self.engine.close()


async def asleep(watched):
    """Until the engine's thread has nothing to do."""
    engine, thread = watched.engine, watched.engine._thread
    async with asyncio.timeout(DEADLINE_SECONDS):
        while engine._outbox or not thread._asleep or thread._commands or not thread.core.idle:  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(0)


async def answer(stream):
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await stream.get()


@pytest.fixture(autouse=True)
def long_brief(monkeypatch):
    """However slow the machine is."""
    monkeypatch.setattr(engine_thread, "BRIEF_SECONDS", 1e6)


async def test_brief_steps_are_taken_where_they_are_fed_from(runner, states_after):
    async with Watched(runner) as watched:
        streams = watched.open(3)
        await asleep(watched)
        for ids in ([5], [6, 7, 8], [9]):
            for stream in streams:
                watched.feed(stream, *ids)
            told = [await answer(stream) for stream in streams]
            assert [len(each.outputs[0]) for each in told] == [len(ids)] * 3
        assert watched.threads == [threading.get_ident()]
        np.testing.assert_array_equal(told[0].outputs[0], [runner.logits_of(states_after([5, 6, 7, 8, 9])[-1])])


async def test_long_steps_are_run_by_the_engines_thread(runner, monkeypatch, states_after):
    """And what comes meanwhile waits for them: steps, ends, and requests."""
    monkeypatch.setattr(engine_thread, "BRIEF_SECONDS", -1.0)
    held, go_on = threading.Event(), threading.Event()
    async with Watched(runner) as watched:
        first, second = watched.open(2)
        await asleep(watched)

        def hold(state, token):
            watched.threads.append(threading.get_ident())
            held.set()
            assert go_on.wait(DEADLINE_SECONDS)

        runner.fault = hold
        watched.feed(first, 5)
        assert await asyncio.to_thread(held.wait, DEADLINE_SECONDS)
        watched.feed(first, 6)
        watched.feed(second, 7, 8)
        watched.engine.feed(second.id, None)
        with watched.engine.admit() as place:
            request = Request(np.array([1]), SamplingParameters(max_tokens=1, temperature=0.0))
            tokens = place.start(request, lambda: None)
            go_on.set()
            told = [await answer(first), await answer(first), await answer(second)]
            states = [*states_after([5, 6]), *states_after([7, 8])]
            rows = [row for each in told for row in each.outputs[0]]
            np.testing.assert_array_equal(rows, [runner.logits_of(state) for state in states])
            assert (await answer(second)).snapshot.state["state.a"][0] == states[-1]
            await answer(tokens)
        assert threading.get_ident() not in watched.threads


async def test_closing_waits_for_what_runs_and_ends_everybody(runner, monkeypatch):
    monkeypatch.setattr(engine_thread, "BRIEF_SECONDS", -1.0)
    held, go_on = threading.Event(), threading.Event()
    watched = Watched(runner)
    watched.engine.start()
    first, second = watched.open(2)
    await asleep(watched)

    def hold(state, token):
        held.set()
        assert go_on.wait(DEADLINE_SECONDS)

    runner.fault = hold
    watched.feed(first, 5)
    assert await asyncio.to_thread(held.wait, DEADLINE_SECONDS)
    watched.feed(second, 6)
    late = watched.places.enter_context(watched.engine.admit()).start(
        Request(np.array([1]), SamplingParameters(max_tokens=1)), lambda: None
    )
    closing = asyncio.create_task(watched.engine.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert isinstance(await answer(first), Answer)
    for stream in (first, second, late):
        assert (await answer(stream)).reason is FinishReason.FAILED
    watched.places.close()


async def test_requests_keep_steps_on_the_engines_thread(runner, states_after):
    async with Watched(runner) as watched:
        (stream,) = watched.open(1)
        await asleep(watched)
        with watched.engine.admit() as place:
            tokens = place.start(Request(np.array([1]), SamplingParameters(max_tokens=10**9)), lambda: None)
            await tokens.get()
            watched.threads.clear()
            watched.feed(stream, 5)
            told = await answer(stream)
            np.testing.assert_array_equal(told.outputs[0], [runner.logits_of(states_after([5])[0])])
            assert threading.get_ident() not in watched.threads


async def test_what_the_thread_has_told_arrives_first(runner, states_after):
    async with Watched(runner) as watched:
        first, second = watched.open(2)
        await asleep(watched)
        thread = watched.engine._thread
        watched.feed(first, 5)
        watched.engine.cancel(second.id)  # which is the thread's to obey, and so is what came before it
        watched.engine._hand_over()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while thread._commands or not (thread._asleep and thread.core.idle):  # while the event loop does nothing else
            assert time.monotonic() < deadline
            time.sleep(0)  # noqa: ASYNC251 (it is not to go on)
        watched.feed(first, 6)
        watched.engine._hand_over()
        told = [await answer(first), await answer(first)]
        expected = [runner.logits_of(state) for state in states_after([5, 6])]
        np.testing.assert_array_equal([row for each in told for row in each.outputs[0]], expected)


async def test_end_and_cancel_come_behind_what_was_fed(runner, states_after):
    async with Watched(runner) as watched:
        first, second = watched.open(2)
        await asleep(watched)
        watched.feed(first, 5)
        watched.engine.feed(first.id, None)
        watched.feed(second, 6)
        watched.engine.cancel(second.id)
        assert isinstance(await answer(first), Answer)
        ended = await answer(first)
        assert (ended.reason, ended.snapshot.state["state.a"][0]) == (FinishReason.STOP, states_after([5])[0])
        while isinstance(ended := await answer(second), Answer):
            pass
        assert ended.reason is FinishReason.CANCELLED


@pytest.mark.parametrize(
    ("fault", "brief"), [(OSError("device lost"), 1e6), (OSError("device lost"), -1.0), (ZeroDivisionError(""), 1e6)]
)
async def test_engine_that_fails_on_the_event_loop_tells_everybody_and_stops(runner, monkeypatch, fault, brief):
    async with Watched(runner) as watched:
        streams = watched.open(2)
        await asleep(watched)
        if isinstance(fault, OSError):
            monkeypatch.setattr(engine_thread, "BRIEF_SECONDS", brief)
            runner.fault = lambda state, token: fault
        else:
            monkeypatch.setattr(watched.engine._thread.core, "begin", lambda: 1 / 0)
        watched.feed(streams[0], 5)
        for stream in streams:
            assert (await answer(stream)).reason is FinishReason.FAILED
        assert watched.engine.failure is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not watched.engine._thread.ended:  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0)
