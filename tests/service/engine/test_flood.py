"""Crowds are let wait, floods are not."""

from __future__ import annotations

import random

import pytest

from service.engine.flood import Flood


def arrivals(rate, *, start, end, seed=1):
    draw = random.Random(seed)
    at = start
    while (at := at + draw.expovariate(rate)) < end:
        yield at


def begins(flood, times, service_seconds):
    return [at for at in times if flood.came(service_seconds, at)]


@pytest.mark.parametrize("rate", [8, 150, 3_000])
def test_flood_is_known_in_its_second_window_and_begins_once(rate):
    flood = Flood()
    began = begins(flood, arrivals(5 * rate, start=0.0, end=60.0), 1 / rate)
    assert len(began) == 1
    assert 2.0 < began[0] < 4.0
    assert flood.on


@pytest.mark.parametrize("rate", [8, 150, 3_000])
def test_load_that_can_just_be_served_is_no_flood(rate):
    flood = Flood()
    assert begins(flood, arrivals(rate, start=0.0, end=600.0), 1 / rate) == []
    assert not flood.on


def test_crowd_that_then_takes_turns_is_no_flood():
    flood = Flood()
    crowd = [0.0015 * count for count in range(1_024)]
    assert begins(flood, [*crowd, *arrivals(150, start=1.6, end=30.0)], 1 / 150) == []
    assert not flood.on


def test_flood_ends_with_a_window_in_which_no_more_come_than_can_be_served():
    flood = Flood()
    assert begins(flood, arrivals(500, start=0.0, end=10.0), 0.01)
    assert begins(flood, arrivals(90, start=10.0, end=15.0), 0.01) == []
    assert not flood.on
    assert begins(flood, arrivals(500, start=15.0, end=25.0), 0.01)


def test_flood_is_over_for_who_comes_after_a_pause():
    flood = Flood()
    assert begins(flood, arrivals(500, start=0.0, end=10.0), 0.01)
    assert not flood.came(0.01, 60.0)
    assert not flood.on


def test_nothing_is_a_flood_before_anybody_knows_how_long_rows_are_held():
    flood = Flood()
    assert begins(flood, arrivals(5_000, start=0.0, end=5.0), 0.0) == []


def test_few_wide_beams_among_many_small_requests_are_no_flood():
    flood, draw = Flood(), random.Random(3)
    for at in arrivals(60, start=0.0, end=60.0):  # half of what can be served, the beams counted
        assert not flood.came(0.1 if draw.random() < 0.03 else 0.005, at)
    assert not flood.on
