"""Ends work that nobody waits for any more: a plain POST's whose client has gone, or the rest of what has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end, unless the client leaves first: then cancel it.

    It runs in the caller's task: one task beside it, which listens, is all that this costs.

    Raises:
        ClientGone: the client left.
    """
    worker = asyncio.current_task()
    assert worker is not None
    gone = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal gone
        gone = True
        worker.cancel()

    watcher = asyncio.ensure_future(_disconnected(request))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and worker.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.remove_done_callback(leave)
        watcher.cancel()


async def all_or_none(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all; the first failure ends the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
