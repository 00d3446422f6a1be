"""What runs while a server drains, without a server."""

import asyncio

import pytest

from carousel.service.observability.requests import RequestRecord
from carousel.service.work.drain import Drain


async def test_drain_is_quiet_once_all_that_ran_has_left():
    drain, done = Drain(), asyncio.Event()

    async def work() -> None:
        drain.enter(asyncio.current_task(), None)
        await done.wait()
        drain.leave(asyncio.current_task())

    assert await drain.quiet(0)
    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(drain) == 3
    assert not await drain.quiet(0)
    done.set()
    assert await drain.quiet(60)
    await asyncio.gather(*tasks)


async def test_end_cancels_who_has_no_answer_yet_and_tells_who_listens():
    drain = Drain()
    waiting, answered = RequestRecord(), RequestRecord(status=200)

    async def work(record: RequestRecord | None) -> None:
        drain.enter(asyncio.current_task(), record)
        try:
            await asyncio.Event().wait()
        finally:
            drain.leave(asyncio.current_task())

    tasks = [asyncio.create_task(work(record)) for record in (waiting, answered, None)]
    await asyncio.sleep(0)
    told: list[tuple[bool, bool]] = []
    cancelled: list[bool] = []
    with drain.listening(lambda: told.append((drain.begun, drain.over))), drain.ending(lambda: cancelled.append(True)):
        drain.begin()
        assert (told, cancelled) == ([(True, False)], [])
        drain.end()
        assert (told, cancelled) == ([(True, False), (True, True)], [True])
        await asyncio.wait(tasks, timeout=0)
        assert [task.cancelled() for task in tasks] == [True, False, False]
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("over", [False, True])
def test_listener_that_comes_late_is_told_at_once(over):
    drain, told = Drain(), []
    drain.begin()
    if over:
        drain.end()
    with drain.listening(lambda: told.append("any")), drain.ending(lambda: told.append("end")):
        assert told == ["any", "end"] if over else ["any"]
    assert (drain.refusal().code, drain.refusal().retryable, drain.refusal().status) == ("shutting_down", True, 503)
