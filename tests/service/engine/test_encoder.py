"""Images that queue up, are encoded together and come back each to its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from carousel.service.engine.encoder.encoder import PREPARING_SECONDS, Encoder
from carousel.service.engine.encoder.encoding import EncoderStopped, EncodingFailed
from carousel.service.engine.encoder.pace import CALL_SECONDS, MAX_BATCH, RECENT_CALLS, Pace
from carousel.service.engine.rows.table import NOT_FINITE
from carousel.service.engine.session import RunnerBroken

SHAPE = (3, 2, 5)
DEADLINE_SECONDS = 30


class FakeGraph:
    """What comes out is a function of each image; a batch can be held back at its gate."""

    def __init__(self):
        self.batches = []
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        self.fault = lambda value: None

    def __call__(self, images):
        values = images.reshape(len(images), -1)[:, 0].tolist()
        self.batches.append(values)
        self.reached.set()
        assert self.gate.wait(DEADLINE_SECONDS)
        self.reached.clear()
        state = np.stack([image[0] * 2 for image in images])  # [B, 2, 5]
        for place, value in enumerate(values):
            fault = self.fault(value)
            if isinstance(fault, BaseException):
                raise fault
            if fault is not None:
                state[place, 1, 1] = fault
        return {
            "state.h": state,
            "memory.map": np.stack([image[1] + 1 for image in images]),
            "memory.count": np.array(values, np.int64)[:, None],
        }


def image(value):
    return np.full(SHAPE, value, np.float32)


@pytest.fixture
def graph():
    return FakeGraph()


class Fixed(Pace):
    """Learns nothing."""

    max_batch, in_turns = 16, False

    def __init__(self, max_batch, in_turns):
        self.max_batch, self.in_turns = max_batch, in_turns

    def note(self, images, seconds):
        pass


@asynccontextmanager
async def running(
    graph, *, max_batch=16, in_turns=False, workers=1, on_batch=lambda report: None, clock=None
) -> AsyncIterator[Encoder]:
    extra = {} if clock is None else {"clock": clock}
    extra["pace"] = Fixed(max_batch, in_turns)
    encoder = Encoder(graph, SHAPE, frozenset({"state.h"}), workers=workers, on_batch=on_batch, **extra)
    encoder.start()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield encoder
    finally:
        graph.gate.set()
        await encoder.close()


async def held(graph, encoder):
    """A task whose image is in the graph, and stays there until the gate opens."""
    graph.gate.clear()
    task = asyncio.create_task(encoder.encode(partial(image, 99)))
    await asyncio.to_thread(graph.reached.wait, DEADLINE_SECONDS)
    return task


async def waiting(encoder, *values):
    """Tasks whose images wait."""
    tasks = [asyncio.create_task(encoder.encode(partial(image, value))) for value in values]
    await asyncio.sleep(0)  # each runs until it waits for its result
    assert encoder.waiting == len(values)
    return tasks


def assert_encoding(encoding, value):
    assert list(encoding.states) == ["state.h"]
    np.testing.assert_array_equal(encoding.states["state.h"], np.full((2, 5), 2 * value))
    np.testing.assert_array_equal(encoding.context["memory.map"], np.full((2, 5), value + 1))
    assert encoding.context["memory.count"].tolist() == [value]
    assert all(row.base is None for row in (*encoding.states.values(), *encoding.context.values()))
    assert encoding.snapshot.state is encoding.states
    assert len(encoding.snapshot.pending) == 0


async def test_workers_encode_side_by_side(graph):
    async with running(graph, workers=3, max_batch=2) as encoder:
        tasks = []
        for count in (1, 2, 3):
            tasks.append(await held(graph, encoder))
            assert len(graph.batches) == count
            graph.reached.clear()
        later = await waiting(encoder, 5)
        graph.gate.set()
        for encoding in await asyncio.gather(*tasks):
            assert_encoding(encoding, 99)
        assert_encoding(await later[0], 5)
    assert graph.batches == [[99], [99], [99], [5]]


async def test_worker_that_breaks_stops_the_others_and_nobody_waits_for_ever(graph):
    graph.fault = lambda value: RuntimeError("broken") if value in (0, 13) else None
    async with running(graph, workers=2) as encoder:
        with pytest.raises(EncoderStopped, match="broken"):
            await encoder.encode(partial(image, 13))
        assert encoder.failure is not None
        with pytest.raises(EncoderStopped, match="broken"):
            await encoder.encode(partial(image, 1))


async def test_image_that_is_ready_does_not_wait_for_slow_ones_to_be_prepared(graph):
    now = [0.0]

    def slow(value):
        now[0] += 0.5
        return image(value)

    async with running(graph, max_batch=16, clock=lambda: now[0]) as encoder:
        first = await held(graph, encoder)
        jobs = [
            asyncio.ensure_future(encoder.encode(partial(make, value)))
            for value, make in enumerate([image, *[slow] * 5])
        ]
        await asyncio.sleep(0)  # each runs until it waits for its result
        graph.gate.set()
        await asyncio.gather(first, *jobs)
    assert graph.batches[:2] == [[99], [0, 1]]  # with the one that was being prepared, not with all


async def test_images_that_wait_are_encoded_together_in_order(graph):
    reports = []
    ticks = iter(range(100))
    async with running(graph, max_batch=4, on_batch=reports.append, clock=lambda: next(ticks) / 1024) as encoder:
        first = await held(graph, encoder)
        rest = await waiting(encoder, *range(10))
        graph.gate.set()
        assert_encoding(await first, 99)
        for value, encoding in enumerate(await asyncio.gather(*rest)):
            assert_encoding(encoding, value)
    assert graph.batches == [[99], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [report.images for report in reports] == [1, 4, 4, 2]
    assert [report.seconds for report in reports] == [1 / 1024] * 4


async def test_cancelled_image_leaves_the_queue(graph):
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        stays, goes = await waiting(encoder, 1, 2)
        goes.cancel()
        with pytest.raises(asyncio.CancelledError):
            await goes
        assert encoder.waiting == 1
        graph.gate.set()
        await asyncio.gather(first, stays)
    assert graph.batches == [[99], [1]]


async def test_image_cancelled_while_it_is_encoded_hurts_none_of_its_batch(graph):
    loop = asyncio.get_running_loop()
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        tasks = await waiting(encoder, 1, 2)
        graph.fault = lambda value: None if value == 99 else loop.call_soon_threadsafe(tasks[0].cancel) and None
        graph.gate.set()
        _, gone, stays = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(gone, asyncio.CancelledError)
    assert_encoding(stays, 2)
    assert graph.batches == [[99], [1, 2]]


async def test_image_that_raises_fails_alone(graph):
    graph.fault = lambda value: ValueError("bad image") if value == 2 else None
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        tasks = await waiting(encoder, 1, 2, 3)
        graph.gate.set()
        _, one, two, three = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert_encoding(one, 1)
        assert_encoding(three, 3)
        assert isinstance(two, EncodingFailed)
        assert str(two) == "ValueError: bad image"
        assert encoder.failure is None
        assert_encoding(await encoder.encode(partial(image, 4)), 4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
async def test_image_whose_outputs_are_not_finite_fails_alone(graph, poison):
    graph.fault = lambda value: poison if value == 2 else None
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        tasks = await waiting(encoder, 1, 2)
        graph.gate.set()
        _, one, two = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert_encoding(one, 1)
    assert isinstance(two, EncodingFailed)
    assert str(two) == NOT_FINITE
    assert graph.batches == [[99], [1, 2]]


async def test_graph_that_fails_on_zeros_too_is_broken(graph):
    graph.fault = lambda value: OSError("device lost")
    async with running(graph, max_batch=1) as encoder:
        first = await held(graph, encoder)
        (second,) = await waiting(encoder, 1)
        graph.gate.set()
        for task in (first, second):
            with pytest.raises(EncoderStopped, match=r"the model's encoder is broken \(OSError: device lost\)"):
                await task
        assert "device lost" in encoder.failure
        with pytest.raises(EncoderStopped, match="device lost"):
            await encoder.encode(partial(image, 1))


async def test_defect_ends_those_who_wait(graph, monkeypatch):
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        graph.fault = lambda value: ValueError("bad image")
        monkeypatch.setattr(encoder, "_time", lambda count: 1 / 0)
        (second,) = await waiting(encoder, 1)
        graph.gate.set()
        for task in (first, second):
            with pytest.raises(EncoderStopped, match=r"the encoder failed \(ZeroDivisionError\)"):
                await task
        assert encoder.failure == "the encoder failed (ZeroDivisionError)"


async def test_close_finishes_the_batch_and_refuses_what_waits(graph):
    async with running(graph) as encoder:
        first = await held(graph, encoder)
        (second,) = await waiting(encoder, 1)
        closing = asyncio.create_task(encoder.close())
        await asyncio.sleep(0)  # it runs until it waits for the thread
        with pytest.raises(EncoderStopped, match="shutting down"):
            await encoder.encode(partial(image, 2))
        graph.gate.set()
        await closing
        assert_encoding(await first, 99)
        with pytest.raises(EncoderStopped, match="shutting down"):
            await second
    assert graph.batches == [[99]]


@pytest.mark.parametrize(
    ("seconds", "max_batch", "in_turns"),
    [(10, 1, False), (0.026, 1, False), (0.0125, 2, False), (0.002, 12, False), (0.001, 25, True), (0.0002, 32, True)],
)
def test_a_call_takes_as_many_images_as_are_quick_to_encode(seconds, max_batch, in_turns):
    now, calls = [0.0], []

    def graph(images):
        calls.append(len(images))
        now[0] += seconds * len(images)
        return {}

    pace = Pace()
    Encoder(graph, SHAPE, frozenset(), on_batch=print, clock=lambda: now[0], pace=pace).warm_up()
    assert (pace.max_batch, pace.in_turns) == (max_batch, in_turns)
    assert calls == [1, 1, 1, max_batch]
    assert max_batch <= MAX_BATCH


async def test_start_on_a_busy_machine_decides_nothing():
    now, busy, calls = [0.0], 40, []

    def graph(images):
        calls.append(len(images))
        now[0] += 0.0005 * busy * len(images)
        return {"state.h": np.zeros((len(images), 1), np.float32)}

    pace = Pace()
    encoder = Encoder(graph, SHAPE, frozenset({"state.h"}), on_batch=lambda _: None, clock=lambda: now[0], pace=pace)
    encoder.warm_up()
    assert pace.max_batch == 1
    busy = 1
    encoder.start()
    try:
        await encoder.encode(partial(image, 1))
        assert (pace.max_batch, pace.in_turns) == (MAX_BATCH, True)
        calls.clear()
        for _ in range(10):
            await asyncio.gather(*(encoder.encode(partial(image, value)) for value in range(40)))
        assert max(calls) > 1
        busy = 1000
        for _ in range(RECENT_CALLS):
            await encoder.encode(partial(image, 1))
        assert pace.max_batch == 1  # what it has become is found out as well
    finally:
        await encoder.close()


def test_pace_begins_with_one_image_and_survives_a_clock_that_stands():
    pace = Pace()
    assert (pace.max_batch, pace.in_turns) == (1, False)
    pace.note(4, 0.0)
    assert pace.max_batch == MAX_BATCH
    for _ in range(RECENT_CALLS):
        pace.note(2, CALL_SECONDS)
    assert pace.max_batch == 2


def test_warm_up_refuses_a_graph_that_cannot_run(graph):
    graph.fault = lambda value: ValueError("no such kernel")
    with pytest.raises(RunnerBroken, match="no such kernel"):
        Encoder(graph, SHAPE, frozenset(), on_batch=print).warm_up()


async def test_image_that_cannot_be_prepared_fails_alone(graph):
    def broken():
        raise OSError("no image")

    async with running(graph) as encoder:
        first = await held(graph, encoder)
        tasks = [asyncio.create_task(encoder.encode(prepare)) for prepare in (partial(image, 1), broken)]
        graph.gate.set()
        _, sound, failed = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert_encoding(sound, 1)
    assert isinstance(failed, OSError)
    assert graph.batches == [[99], [1]]


async def test_image_that_is_slow_to_prepare_holds_up_no_other(graph):
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(DEADLINE_SECONDS)
        return image(7)

    async with running(graph, workers=2) as encoder:
        late = asyncio.create_task(encoder.encode(slow))
        await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        for value in range(3):
            assert_encoding(await encoder.encode(partial(image, value)), value)
        assert not late.done()
        go_on.set()
        assert_encoding(await late, 7)


async def test_close_refuses_an_image_that_is_being_prepared(graph):
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(DEADLINE_SECONDS)
        return image(7)

    async with running(graph) as encoder:
        late = asyncio.create_task(encoder.encode(slow))
        await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        closing = asyncio.create_task(encoder.close())
        await asyncio.sleep(0)  # it runs until it waits for the thread
        go_on.set()
        await closing
        with pytest.raises(EncoderStopped, match="shutting down"):
            await late
    assert graph.batches == []


async def test_threads_that_take_turns_leave_the_work_to_one_until_it_takes_long(graph):
    now = [0.0]
    begun, go_on, looked = threading.Event(), threading.Event(), threading.Semaphore(0)

    def clock():
        if begun.is_set() and not go_on.is_set():
            looked.release()
        return now[0]

    def slow():
        begun.set()
        assert go_on.wait(DEADLINE_SECONDS)
        return image(7)

    async with running(graph, workers=3, clock=clock, in_turns=True) as encoder:
        late = asyncio.create_task(encoder.encode(slow))
        await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        others = await waiting(encoder, 0, 1, 2)
        for _ in range(3):  # it is not yet the turn of who looks at the clock
            assert await asyncio.to_thread(looked.acquire, timeout=DEADLINE_SECONDS)
        assert encoder.waiting == 3
        now[0] += 1.5 * PREPARING_SECONDS
        for value, encoding in enumerate(await asyncio.gather(*others)):
            assert_encoding(encoding, value)
        assert not late.done()
        go_on.set()
        assert_encoding(await late, 7)


async def test_each_of_many_slow_images_gets_a_thread_though_they_take_turns(graph):
    """No image comes after the last of them: who waits must be found by the threads themselves."""
    together = threading.Barrier(3, timeout=DEADLINE_SECONDS)

    def slow(value):
        together.wait()
        return image(value)

    async with running(graph, workers=3, in_turns=True) as encoder:
        tasks = [asyncio.create_task(encoder.encode(partial(slow, value))) for value in range(3)]
        for value, encoding in enumerate(await asyncio.gather(*tasks)):
            assert_encoding(encoding, value)


async def test_threads_that_take_turns_encode_everything(graph):
    async with running(graph, workers=4, max_batch=4, in_turns=True) as encoder:
        for _ in range(20):
            for value, encoding in enumerate(
                await asyncio.gather(*(encoder.encode(partial(image, value)) for value in range(15)))
            ):
                assert_encoding(encoding, value)


async def test_batch_is_begun_with_when_nothing_interactive_waits(graph):
    async with running(graph, max_batch=1) as encoder:
        graph.gate.clear()
        first = asyncio.create_task(encoder.encode(partial(image, 1)))
        await asyncio.to_thread(graph.reached.wait)
        later = [
            asyncio.create_task(encoder.encode(partial(image, value), batch=value >= 20))
            for value in (20, 21, 2, 22, 3)
        ]
        await asyncio.sleep(0)
        assert encoder.waiting == 5
        later[-2].cancel()
        await asyncio.sleep(0)  # the encoder's threads do not wait for the event loop to hear of it
        graph.gate.set()
        await asyncio.gather(first, *later, return_exceptions=True)
    assert graph.batches == [[1], [2], [3], [20], [21]]
