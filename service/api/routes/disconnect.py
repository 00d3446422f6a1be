"""Ends work that nobody waits for any more: a plain POST's whose client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

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


async def disconnected(receive: Receive) -> None:
    """Wait until a client whose request has come leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
