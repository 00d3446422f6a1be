"""What is most probable in each place of a weighed text: the same tuples, and nothing for the search for garbage."""

from __future__ import annotations

import gc

import pytest

from carousel.service.engine.weighed_places import Alternative, WeighedPlaces

BEST = [(), (Alternative(3, -0.5), Alternative(1, -0.7)), (Alternative(2**40, -1e-300),), (), (Alternative(0, -9.25),)]


def _places(count: int = 1) -> WeighedPlaces:
    places = WeighedPlaces()
    for best in BEST * count:
        places.append(best)
    return places


def test_places_give_back_what_was_noted() -> None:
    assert list(_places()) == BEST
    assert all(type(one) is Alternative for best in _places() for one in best)
    assert (len(_places()), len(WeighedPlaces()), list(WeighedPlaces())) == (5, 0, [])


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("empty", [0, 2])
def test_last_places_stand_behind_empty_ones(count: int, empty: int) -> None:
    taken = _places().last(count, empty)
    assert list(taken) == [()] * empty + BEST[len(BEST) - count :]
    assert len(taken) == empty + count


def test_places_are_no_objects_to_look_at() -> None:
    gc.collect()
    before = len(gc.get_objects())
    places = _places(1_000)
    assert len(gc.get_objects()) - before < 50
    assert len(places) == 5_000
