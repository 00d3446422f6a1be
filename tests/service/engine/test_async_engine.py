"""Two threads and a queue: what is promised to the event loop, whatever the engine's thread does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.errors import BeamTooWide, EngineFull, EngineStopped
from carousel.service.engine.parameters import BeamParameters, FinishReason, SamplingParameters
from carousel.service.engine.port import Ended, Request, Told
from carousel.service.engine.streams.token_stream import MAX_EVENTS, TokenStream
from carousel.service.engine.threads.async_engine import AsyncEngine
from carousel.service.engine.threads.engine_thread import MAX_UNDELIVERED_STEPS

DEADLINE_SECONDS = 30


@asynccontextmanager
async def running(runner, *, max_rows=4, max_waiting=100, on_steps=lambda reports: None) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineCore(runner, max_rows), max_waiting=max_waiting, on_steps=on_steps)
    engine.start()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield engine
    finally:
        await engine.close()


def greedy(max_tokens):
    return SamplingParameters(max_tokens=max_tokens, temperature=0.0)


async def collect(stream):
    tokens = []
    while isinstance(event := await stream.get(), Told):
        tokens.append(event.token)
    return tokens, event


async def until(condition):
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 (nothing signals that a row became free: that is what is tested)
            await asyncio.sleep(0)


async def test_streams_of_many_sequences_each_get_their_own_tokens(runner, greedy_oracle):
    reports = []
    async with running(runner, on_steps=reports.extend) as engine:

        async def one(token):
            with engine.admit() as place:
                return await collect(place.start(Request(np.array([token]), greedy(20))))

        results = await asyncio.gather(*(one(token) for token in range(20)))
        assert [tokens for tokens, _ in results] == [greedy_oracle([token], 20) for token in range(20)]
        assert (engine.describe().admitted, engine.describe().running) == (0, 0)
    assert sum(report.generated_tokens for report in reports) == 400


async def test_leaving_a_place_ends_its_sequence(runner):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await stream.get()
            assert engine.describe().running == 1
        await until(lambda: engine.describe().running == 0)
        assert engine.describe().admitted == 0


async def test_cancel_is_the_streams_last_event(runner):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await stream.get()
            place.cancel()
            _, end = await collect(stream)
        assert end.reason is FinishReason.CANCELLED


async def test_admit_counts_before_anything_is_submitted(runner):
    async with running(runner, max_rows=1, max_waiting=1) as engine:
        with engine.admit(), engine.admit(), pytest.raises(EngineFull, match="2 requests run and wait; allowed are 2"):
            engine.admit()
        with engine.admit():
            pass


async def test_slow_reader_is_ended_and_costs_no_row(runner):
    overflows = []
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)), lambda: overflows.append(1))
            await until(lambda: stream.finished and engine.describe().running == 0)
            tokens, end = await collect(stream)
    assert end.reason is FinishReason.SLOW_READER
    assert tokens == []
    assert overflows == [1]


async def test_engine_waits_for_an_event_loop_that_is_busy(runner):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await stream.get()
            before = runner.steps
            threading.Event().wait(0.2)  # the event loop is blocked: nothing is delivered
            assert runner.steps - before <= MAX_UNDELIVERED_STEPS + 1


async def test_broken_runner_ends_everybody_and_turns_the_engine_red(runner):
    async with running(runner, max_rows=1) as engine:
        with engine.admit() as first, engine.admit() as second:
            streams = [place.start(Request(np.array([1]), greedy(10**9))) for place in (first, second)]
            await streams[0].get()
            runner.fault = lambda state, token: OSError("device lost")
            ends = [(await collect(stream))[1] for stream in streams]
            assert {end.reason for end in ends} == {FinishReason.FAILED}
        assert "device lost" in (engine.failure or "")
        with pytest.raises(EngineStopped, match="device lost"):
            engine.admit()


async def test_defect_in_the_engine_ends_everybody(runner, monkeypatch):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await stream.get()
            monkeypatch.setattr(engine._thread.core, "step", lambda: 1 / 0)
            _, end = await collect(stream)
        assert end.reason is FinishReason.FAILED
        assert engine.failure == "the engine failed (ZeroDivisionError)"


@pytest.mark.parametrize("count", [1, 32])
async def test_tokens_of_a_step_are_told_while_the_next_one_runs(runner, count):
    told = threading.Event()

    def fault(state, token):
        if runner.steps == 2:
            assert told.wait(DEADLINE_SECONDS)

    runner.fault = fault
    async with running(runner, max_rows=count) as engine:
        with ExitStack() as places:
            streams = [
                places.enter_context(engine.admit()).start(Request(np.array([1]), greedy(2))) for _ in range(count)
            ]
            for stream in streams:
                await stream.get()
            told.set()
            for stream in streams:
                tokens, end = await collect(stream)
                assert (len(tokens), end.reason) == (1, FinishReason.LENGTH)


async def test_close_ends_what_runs_and_refuses_what_comes(runner):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await stream.get()
            await engine.close()
            _, end = await collect(stream)
            assert end.reason is FinishReason.FAILED
        with pytest.raises(EngineStopped, match="shutting down"):
            engine.admit()


async def test_a_thread_that_died_is_noticed(runner, monkeypatch):
    async with running(runner) as engine:
        monkeypatch.setattr(engine._thread, "_await_work", lambda core: False)
        with engine.admit() as place:
            place.start(Request(np.array([1]), greedy(1)))
            await until(lambda: engine.failure is not None)
        assert engine.failure == "the engine's thread has ended"


async def test_token_stream_is_bounded():
    overflowed = []
    stream = TokenStream(0, lambda: overflowed.append(True), max_events=3)
    for token in range(5):
        stream.put(Told(token, 0.0))
    stream.put(Ended(FinishReason.LENGTH))
    assert overflowed == [True]
    assert (await stream.get()).reason is FinishReason.SLOW_READER
    assert MAX_EVENTS > 3


async def test_sequences_of_one_iteration_of_the_loop_join_in_one_step(runner):
    reports = []
    async with running(runner, on_steps=reports.extend) as engine:
        with ExitStack() as places:
            streams = [
                places.enter_context(engine.admit()).start(Request(np.array([token]), greedy(1))) for token in range(4)
            ]
            for stream in streams:
                await collect(stream)
    assert [report.rows for report in reports] == [4]


async def test_sequence_of_the_iteration_in_which_the_engine_closes_is_ended(runner):
    async with running(runner) as engine:
        with engine.admit() as place:
            stream = place.start(Request(np.array([1]), greedy(10**9)))
            await engine.close()
            _, end = await collect(stream)
    assert end.reason is FinishReason.FAILED


def searching(token, width):
    return Request(np.array([token]), BeamParameters(width, 20, end=3, best=width))


def searching_for_ever(width):
    return Request(np.array([1]), BeamParameters(width, 10**9, end=-1))


async def test_beam_gets_nothing_but_its_end(runner, beam_oracle):
    async with running(runner, max_rows=8) as engine:

        async def one(token):
            with engine.admit(3) as place:
                return await collect(place.start(searching(token, 3)))

        results = await asyncio.gather(*(one(token) for token in range(20)))
        assert (engine.describe().admitted, engine.describe().running) == (0, 0)
    for token, (tokens, end) in enumerate(results):
        assert tokens == []
        expected = beam_oracle([token], searching(token, 3).head)
        assert [(h.tokens, h.logprob, h.score, h.reason) for h in end.result.hypotheses] == expected


async def test_admit_counts_the_rows_of_a_beam(runner):
    async with running(runner, max_rows=4, max_waiting=3) as engine:
        with engine.admit(4), engine.admit(2):
            assert engine.describe().admitted == 6
            with pytest.raises(EngineFull):
                engine.admit(2)
            with engine.admit():
                pass
        assert engine.describe().admitted == 0
        with pytest.raises(BeamTooWide, match="the beam is 5 rows wide; allowed are 4"):
            engine.admit(5)


async def test_leaving_the_place_of_a_beam_frees_all_its_rows(runner):
    async with running(runner, max_rows=4) as engine:
        with engine.admit(3) as place:
            place.start(searching_for_ever(3))
            await until(lambda: engine.describe().running == 3)
        await until(lambda: engine.describe().running == 0)


async def test_close_ends_beams(runner):
    async with running(runner, max_rows=3) as engine:
        with engine.admit(3) as first, engine.admit(3) as second:
            streams = [place.start(searching_for_ever(3)) for place in (first, second)]
            await until(lambda: engine.describe().running == 3)
            await engine.close()
            ends = [await stream.get() for stream in streams]
    assert [(end.reason, end.result) for end in ends] == [(FinishReason.FAILED, None)] * 2


async def test_tokens_bring_attention_to_those_who_ask(make_runner):
    async with running(make_runner(looks=True)) as engine:
        for asks in (True, False):
            with engine.admit() as place:
                event = await place.start(Request(np.array([1]), greedy(1), attention=asks)).get()
            assert event.attention.shape == (4, 5) if asks else event.attention is None
