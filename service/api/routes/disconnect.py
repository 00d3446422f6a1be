"""Ends work that nobody waits for any more: a plain POST's whose client has gone, or the rest of what has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from carousel.service.engine.port import Place

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


class Interrupted(Exception):
    """The work was cancelled, since it is wanted no more."""


async def unless(signal: asyncio.Future[Any], work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end, unless `signal` is done first, in whichever way: then cancel it.

    It runs in the caller's task, so that it costs none of its own.

    Raises:
        Interrupted: the signal was first.
    """
    worker = asyncio.current_task()
    assert worker is not None
    interrupted = False

    def interrupt(_: asyncio.Future[Any]) -> None:
        nonlocal interrupted
        interrupted = True
        worker.cancel()

    signal.add_done_callback(interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        if interrupted and worker.uncancel() == 0:
            raise Interrupted from None
        raise
    finally:
        signal.remove_done_callback(interrupt)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end, unless the client leaves first: then cancel it.

    Raises:
        ClientGone: the client left.
    """
    leaves = asyncio.ensure_future(disconnected(request.receive))
    try:
        return await unless(leaves, work)
    except Interrupted:
        raise ClientGone from None
    finally:
        leaves.cancel()


async def all_or_none(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all; the first failure ends the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def in_turns(
    places: Sequence[Place], count: int, work: Callable[[Place, int], Awaitable[Result]]
) -> list[Result]:
    """Do so many pieces of work, as many at once as there are places; the first failure ends the rest.

    Args:
        places: taken for them, at least one.
        count: how many.
        work: what is done in a place for the piece of an index.
    """
    results: dict[int, Result] = {}
    waiting = iter(range(count))

    async def take(place: Place) -> None:
        for index in waiting:
            results[index] = await work(place, index)

    if len(places) == 1:
        await take(places[0])
    else:
        await all_or_none(map(take, places))
    return [results[index] for index in range(count)]


async def disconnected(receive: Receive) -> None:
    """Wait until a client whose request has come leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
