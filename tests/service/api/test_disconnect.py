"""Work ends with its client, and with nothing else."""

import asyncio

import pytest
from starlette.requests import Request

from carousel.service.api.routes.disconnect import ClientGone, while_connected


class Client:
    """One that leaves when it is told to."""

    def __init__(self):
        self.leaves = asyncio.Event()
        self.request = Request({"type": "http"}, self._receive)

    async def _receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}


class Work:
    """Waits to be finished; knows how it ended."""

    def __init__(self):
        self.begun, self.finish = asyncio.Event(), asyncio.Event()
        self.ended = "not at all"

    async def __call__(self):
        self.begun.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        return 17


async def test_work_gives_its_result_and_leaves_no_task_behind():
    client, work, before = Client(), Work(), asyncio.all_tasks()
    work.finish.set()
    assert await while_connected(client.request, work()) == 17
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_work_is_cancelled_when_the_client_leaves():
    client, work = Client(), Work()
    waiting = asyncio.create_task(while_connected(client.request, work()))
    await work.begun.wait()
    client.leaves.set()
    with pytest.raises(ClientGone):
        await waiting
    assert work.ended == "cancelled"


async def test_client_that_leaves_too_late_ends_nothing():
    client, work = Client(), Work()
    work.finish.set()

    async def answer():
        result = await while_connected(client.request, work())
        client.leaves.set()
        for _ in range(5):
            await asyncio.sleep(0)
        return result

    assert await asyncio.create_task(answer()) == 17


async def test_cancellation_from_outside_is_no_leaving():
    client, work = Client(), Work()
    waiting = asyncio.create_task(while_connected(client.request, work()))
    await work.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended == "cancelled"


async def test_failure_of_the_work_is_its_own():
    async def fail():
        raise KeyError("seventeen")

    with pytest.raises(KeyError, match="seventeen"):
        await while_connected(Client().request, fail())
