"""Crowds are let wait, floods are not: a queue and its rows, simulated, with everybody served for as long."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from service.engine.flood import GATHER_SECONDS, SHORT, WINDOW_SECONDS, Flood


def poisson(rate, *, start, end, seed=1):
    draw = random.Random(seed)
    at = start
    while (at := at + draw.expovariate(rate)) < end:
        yield at


@dataclass
class Rows:
    """So many rows, each held for a second; who asks is let in while the flood and the bound of the queue allow it."""

    rows: int
    max_waiting: int = 1_024
    flood: Flood = field(init=False)
    waiting: deque[float] = field(default_factory=deque)
    ends: list[float] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When somebody got a row, and how long it waited."""
    refused: int = 0
    crowded_out: int = 0

    def __post_init__(self):
        self.flood = Flood(self.rows)

    def join(self, now):
        while self.waiting and len(self.ends) < self.rows:
            newest = now < self.flood.newest_first_until
            came = self.waiting.pop() if newest else self.waiting.popleft()
            self.waits.append((now, now - came))
            heapq.heappush(self.ends, now + 1.0)

    def ask(self, now):
        queue = len(self.waiting) + len(self.ends) - self.rows
        refused = queue >= self.max_waiting
        if self.flood.on and queue >= 0:
            refused = queue >= self.flood.short or heapq.nsmallest(queue + 1, self.ends)[-1] - now > SHORT
        full = queue >= (self.flood.short if self.flood.on else self.max_waiting)
        if self.flood.came(1, max(0, queue + (not refused)), now, refused=refused, full=refused and full):
            self.began.append(now)
            while len(self.waiting) > self.flood.short:
                self.waiting.popleft()
                self.crowded_out += 1
        if refused:
            self.refused += 1
        else:
            self.waiting.append(now)
            self.join(now)

    def run(self, arrivals, *, returning=0.0, until=math.inf):
        """Let them come; each who was served asks again with this probability, a moment later."""
        due, draw = list(arrivals), random.Random(2)
        heapq.heapify(due)
        while due or self.ends:
            now = min(due[0] if due else math.inf, self.ends[0] if self.ends else math.inf)
            if now > until:
                break
            if self.ends and self.ends[0] == now:
                heapq.heappop(self.ends)
                self.join(now)
                if draw.random() < returning:
                    heapq.heappush(due, now + 0.002 * draw.random())
            else:
                heapq.heappop(due)
                self.ask(now)
        return self


@pytest.mark.parametrize(
    ("rows", "times", "seconds"),
    [
        (8, 5.0, 3.5),  # all places are taken
        (8, 2.0, 12.0),
        (128, 5.0, 3.0),
        (128, 2.0, GATHER_SECONDS + 1.0),
        (128, 1.2, 12.0),
        (500, 2.0, GATHER_SECONDS + 0.5),
        (500, 1.1, 12.0),
    ],
)
def test_flood_is_known_the_sooner_the_greater_it_is_and_begins_once(rows, times, seconds):
    seen = Rows(rows, max_waiting=10 * rows).run(poisson(times * rows, start=0.0, end=20.0))
    fills = 1.0 / times
    assert len(seen.began) == 1
    assert fills < seen.began[0] < fills + seconds


@pytest.mark.parametrize("times", [1.2, 1.5, 2.0, 5.0])
def test_who_is_served_has_hardly_waited_from_the_first_moment_of_a_flood_on(times):
    seen = Rows(128).run(poisson(times * 128, start=0.0, end=30.0))
    waits = sorted(wait for _, wait in seen.waits)
    assert waits[int(0.99 * len(waits))] < (2 * SHORT if times > 1.2 else 0.5)
    assert len(waits) > 0.95 * 30 * 128  # and as many are served as can be


@pytest.mark.parametrize(("times", "longest"), [(0.5, 0.0), (0.9, 1.0), (0.98, 3.0)])
def test_load_that_can_be_served_is_no_flood_and_nobody_waits_long(times, longest):
    seen = Rows(128).run(poisson(times * 128, start=0.0, end=100.0))
    assert (seen.began, seen.refused, seen.crowded_out) == ([], 0, 0)
    assert max(wait for _, wait in seen.waits) <= longest


@pytest.mark.parametrize("clients", [140, 300, 1_024, 1_152])
@pytest.mark.parametrize("gather_seconds", [1e-9, 0.5, 0.9 * GATHER_SECONDS])
def test_crowd_that_then_takes_turns_is_no_flood_and_nobody_starves(clients, gather_seconds):
    crowd = [gather_seconds * place / clients for place in range(clients)]
    seen = Rows(128).run(crowd, returning=1.0, until=30.0)
    assert (seen.began, seen.refused, seen.crowded_out) == ([], 0, 0)
    assert max(wait for _, wait in seen.waits) <= (clients - 128) / 128 + GATHER_SECONDS + 1.5
    assert seen.flood.newest_first_until < 30.0


def test_crowd_that_is_somewhat_too_large_is_served_but_for_the_excess():
    seen = Rows(128).run([0.0005 * place for place in range(1_200)], returning=1.0, until=20.0)
    assert (seen.began, seen.refused, seen.crowded_out) == ([], 1_200 - 1_152, 0)


def test_crowd_that_shrinks_hides_a_flood_for_a_window_or_two():
    crowd = [0.0005 * place for place in range(1_000)]
    flood_at = 60.0
    seen = Rows(128).run([*crowd, *poisson(400, start=flood_at, end=flood_at + 3 * WINDOW_SECONDS)], returning=0.99)
    assert len(seen.began) == 1
    assert flood_at < seen.began[0]


def test_flood_ends_when_nobody_has_been_refused_for_a_while():
    seen = Rows(128).run(poisson(640, start=0.0, end=10.0))
    assert seen.flood.on
    seen.run(poisson(100, start=11.5, end=18.0))
    assert not seen.flood.on
    seen.run(poisson(640, start=20.0, end=30.0))
    assert len(seen.began) == 2


def test_flood_is_over_for_who_comes_after_a_pause():
    flood = Flood(4)
    at = 0.0
    while not flood.on:
        flood.came(1, int(100 * at), at, refused=False)
        at += 0.01
    assert not flood.came(1, 50, at + 60.0, refused=True)
    assert not flood.on


def test_few_wide_beams_among_small_requests_are_no_flood():
    flood, draw = Flood(32), random.Random(3)
    for at in poisson(60, start=0.0, end=60.0):
        beam = draw.random() < 0.03
        assert not flood.came(20 if beam else 1, 10 if beam else 0, at, refused=False)
    assert flood.newest_first_until == -math.inf


@pytest.mark.parametrize("clients", [500, 1_152])
def test_crowd_of_which_nobody_returns_is_served_oldest_first_once_it_has_gathered(clients):
    seen = Rows(128).run([0.001 * place for place in range(clients)])
    assert (seen.began, seen.refused, seen.crowded_out) == ([], 0, 0)
    late = [now - wait for now, wait in seen.waits if now > GATHER_SECONDS + 1.0]
    assert late == sorted(late)


@pytest.mark.parametrize("refused", [True, False])
def test_wide_beam_alone_is_no_flood(refused):
    flood = Flood(128)
    for place in range(60):
        flood.came(1, 40, 0.1 * place, refused=False)
    assert not flood.came(48, 40 if refused else 88, 6.1, refused=refused, full=refused)
    assert not flood.on


def test_who_would_wait_too_long_is_part_of_a_crowd_while_it_gathers():
    flood = Flood(128)
    for place in range(850):
        assert not flood.came(1, place, 0.001 * place, refused=False)
    for place in range(300):
        assert not flood.came(1, 850, 0.85 + 0.001 * place, refused=True)
