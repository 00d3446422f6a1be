"""Prompts consumed on a thread of their own: streams go on, and whoever waits for a prompt waits for nothing else."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import asynccontextmanager

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, SamplingParameters
from carousel.service.engine.port import Request, Told
from carousel.service.engine.prefill.prefill import MAX_TOKENS, Prefill
from carousel.service.engine.prefill.thread import PrefillThread
from carousel.service.engine.threads.async_engine import AsyncEngine

pytestmark = pytest.mark.skipif(
    "len(__import__('os').sched_getaffinity(0)) < 2", reason="with one core there is no such thread"
)

DEADLINE_SECONDS = 30
MODULUS = 9973


class GatedPrefill:
    """Folds ids into the states as the fake runner does, one call for each time that it is let."""

    says = False

    def __init__(self):
        self.entered, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.threads, self.consumed = [], 0
        self.fault = None

    def __call__(self, fed, states):
        (ids,) = fed.values()
        self.threads.append(threading.current_thread().name)
        self.entered.release()
        assert self.let.acquire(timeout=DEADLINE_SECONDS)
        if self.fault is not None:
            raise self.fault
        self.consumed += ids.size
        folded = states["state.a"][:, 0].astype(np.int64)
        for column in ids.T:
            folded = (folded * 31 + column + 1) % MODULUS
        return {
            "state.a": folded[:, None].astype(np.float32),
            "state.b": np.broadcast_to(folded[:, None, None], (len(ids), 2, 3)).astype(np.float32),
        }

    async def entrance(self):
        assert await asyncio.to_thread(self.entered.acquire, timeout=DEADLINE_SECONDS)

    def open(self):
        for _ in range(1000):
            self.let.release()


@pytest.fixture
def prefill():
    return GatedPrefill()


@asynccontextmanager
async def running(runner, prefill, max_rows=4):
    engine = AsyncEngine(EngineCore(runner, max_rows, prefill=prefill), max_waiting=100, on_steps=lambda reports: None)
    engine.start()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield engine
    finally:
        prefill.open()
        await engine.close()


def greedy(max_tokens):
    return SamplingParameters(max_tokens=max_tokens, temperature=0.0)


def ids(length, seed=0):
    return np.random.default_rng([seed, length]).integers(0, 23, length)


async def endless(place):
    """A stream that goes on, after its first token."""
    stream = place.start(Request(np.array([1]), greedy(10**9)))
    await stream.get()
    return stream


async def rest(stream):
    tokens = []
    while isinstance(event := await stream.get(), Told):
        tokens.append(event.token)
    return tokens, event


async def test_streams_go_on_while_a_prompt_is_consumed(runner, prefill, greedy_oracle):
    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other:
            stream = await endless(one)
            prompt = ids(3 * MAX_TOKENS)
            late = other.start(Request(prompt, greedy(9)))
            await prefill.entrance()
            for _ in range(200):
                await stream.get()
            assert engine.describe().waiting == 1
            prefill.open()
            assert (await rest(late))[0] == greedy_oracle(prompt.tolist(), 9)
    assert prefill.consumed == len(prompt) - 1
    assert all(name.endswith("prefill") for name in prefill.threads)


async def test_prompt_is_consumed_by_the_engine_where_nobody_streams(runner, prefill, greedy_oracle):
    prefill.open()
    async with running(runner, prefill) as engine:
        with engine.admit() as place:
            assert (await rest(place.start(Request(ids(90), greedy(5)))))[0] == greedy_oracle(ids(90).tolist(), 5)
    assert set(prefill.threads) == {"engine"}


async def test_prompt_that_is_left_alone_by_streams_is_finished(runner, prefill, greedy_oracle):
    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other:
            stream = await endless(one)
            prompt = ids(20 * MAX_TOKENS)
            late = other.start(Request(prompt, greedy(9)))
            await prefill.entrance()
            one.cancel()
            assert (await rest(stream))[1].reason is FinishReason.CANCELLED
            prefill.open()
            assert (await rest(late))[0] == greedy_oracle(prompt.tolist(), 9)
    assert prefill.threads[-1] == "engine"


async def test_row_is_kept_free_for_whose_prompt_is_consumed(runner, prefill, greedy_oracle):
    async with running(runner, prefill, max_rows=2) as engine:
        with engine.admit() as one, engine.admit() as other, engine.admit() as third:
            stream = await endless(one)
            late = other.start(Request(ids(40), greedy(5)))
            await prefill.entrance()
            last = third.start(Request(np.array([2]), greedy(7)))
            for _ in range(50):
                await stream.get()
            assert (engine.describe().running, engine.describe().waiting) == (1, 2)
            prefill.open()
            assert (await rest(late))[0] == greedy_oracle(ids(40).tolist(), 5)
            assert (await rest(last))[0] == greedy_oracle([2], 7)


async def test_cancelled_prompt_keeps_what_it_had_consumed_before_the_call(runner, prefill, greedy_oracle):
    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other, engine.admit() as third:
            await endless(one)
            prompt = ids(5 * MAX_TOKENS)
            late = other.start(Request(prompt, greedy(5), keep_state=True))
            await prefill.entrance()
            prefill.let.release()
            await prefill.entrance()  # the second call
            other.cancel()
            _, end = await rest(late)
            prefill.open()
            assert end.reason is FinishReason.CANCELLED
            assert end.snapshot.pending.tolist() == prompt[MAX_TOKENS:].tolist()
            again = third.start(Request(end.snapshot.pending, greedy(5), snapshot=end.snapshot))
            assert (await rest(again))[0] == greedy_oracle(prompt.tolist(), 5)


async def test_prompt_that_the_graph_fails_on_is_left_to_steps(runner, prefill, greedy_oracle):
    prefill.fault = ValueError("no such id")
    prefill.open()
    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other:
            await endless(one)
            late = other.start(Request(ids(60), greedy(9)))
            assert (await rest(late))[0] == greedy_oracle(ids(60).tolist(), 9)


async def test_thread_that_dies_leaves_all_prompts_to_steps(runner, prefill, greedy_oracle, monkeypatch, caplog):
    def die(self, budget):
        raise MemoryError("enough")

    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other:
            await endless(one)
            monkeypatch.setattr(Prefill, "advance", die)
            for _ in range(2):
                late = other.start(Request(ids(60), greedy(9)))
                assert (await rest(late))[0] == greedy_oracle(ids(60).tolist(), 9)
    assert "prompts are fed step by step" in caplog.text
    assert prefill.consumed == 0


async def test_engine_closes_in_the_middle_of_a_prompt(runner, prefill):
    async with running(runner, prefill) as engine:
        with engine.admit() as one, engine.admit() as other:
            await endless(one)
            late = other.start(Request(ids(500), greedy(9)))
            await prefill.entrance()
            closing = asyncio.create_task(engine.close())
            _, end = await rest(late)
            assert (end.reason, end.detail) == (FinishReason.FAILED, "the server is shutting down")
            prefill.open()
            await closing
    assert prefill.consumed < 500


def test_thread_stops_when_the_engine_is_idle_and_goes_on_when_nudged(prefill, runner):
    prompts, busy = Prefill(prefill, runner.ports), threading.Event()
    thread = PrefillThread(prompts, busy.is_set, "eats")
    thread.start()
    request = Request(ids(3 * MAX_TOKENS + 1), greedy(1))
    assert prompts.begin(7, request)
    thread.nudge()  # not busy: nothing is consumed
    busy.set()
    thread.nudge()
    assert prefill.entered.acquire(timeout=DEADLINE_SECONDS)
    busy.clear()
    prefill.let.release()
    thread.close()
    assert (prefill.consumed, prompts.pending, prompts.take_arrived({7})) == (MAX_TOKENS, True, {})
    assert prompts.begin(7, request)  # it is known already
    prefill.open()
    assert prompts.advance(1000)
    assert prompts.begin(7, request)  # it has arrived, and nobody has taken it
    assert not prompts.take_arrived({6, 8})
    ((id, arrival),) = prompts.take_arrived({6, 7}).items()
    assert (id, arrival.consumed, prompts.pending) == (7, 3 * MAX_TOKENS, False)
    assert not prompts.take_arrived({7})
    assert prompts.take_consumed() == 3 * MAX_TOKENS


async def test_closed_engine_keeps_no_prefill_graphs_until_garbage_is_collected(runner, prefill):
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    gc.disable()
    try:
        async with running(runner, prefill) as engine:
            # The pool's thread that waited for the engine's to end may be the last to let go.
            prompts = weakref.ref(engine._thread.core.prefill, lambda _: loop.call_soon_threadsafe(gone.set))
        await asyncio.wait_for(gone.wait(), DEADLINE_SECONDS)
        assert prompts() is None
    finally:
        gc.enable()
