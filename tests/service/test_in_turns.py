"""Many pieces of work in few places: in their order, each place busy, the first failure ends the rest."""

from __future__ import annotations

import asyncio

import pytest

from carousel.service.work.turns import in_turns


@pytest.mark.parametrize("places", [1, 2, 5])
def test_results_come_in_order_and_a_place_does_one_at_a_time(places):
    busy: set[int] = set()
    most = 0

    async def work(place, index):
        nonlocal most
        assert place not in busy
        busy.add(place)
        most = max(most, len(busy))
        await asyncio.sleep(0.001 * (5 - index))
        busy.remove(place)
        return 10 * index

    assert asyncio.run(in_turns(range(places), 5, work)) == [0, 10, 20, 30, 40]
    assert most == places


def test_first_failure_ends_the_rest():
    begun, ended = [], []

    async def work(_, index):
        begun.append(index)
        if index == 1:
            raise ValueError("the second")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(index)

    async def both():
        with pytest.raises(ValueError, match="the second"):
            await in_turns(range(2), 9, work)
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(both(), 10))
    assert (begun, ended) == ([0, 1], [0])
