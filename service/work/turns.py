"""Many pieces of work of one request: the first failure ends the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")
Place = TypeVar("Place")


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
        places: taken for them, at least one; what each is, the work says.
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
