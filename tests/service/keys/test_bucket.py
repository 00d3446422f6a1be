"""A bucket against its definition: what passes in any time is at most its capacity and what the rate adds."""

import itertools
import random

import pytest

from carousel.service.keys.bucket import Bucket


def test_bucket_passes_a_burst_and_then_its_rate():
    bucket, now, passed = Bucket(rate=4, capacity=3, now=0.0), 0.0, []
    for tick in range(80):  # 16 asks a second for 5 seconds
        now = tick / 16
        if not bucket.wait_seconds(1, now):
            bucket.take(1, now)
            passed.append(now)
    assert passed[:3] == [0, 1 / 16, 2 / 16]
    assert len(passed) == 3 + 4 * now // 1
    assert all(later - earlier == 0.25 for earlier, later in itertools.pairwise(passed[3:]))


def test_bucket_never_passes_more_than_its_definition_allows():
    generator = random.Random(7)
    bucket, now, taken = Bucket(rate=2.5, capacity=10, now=100.0), 100.0, []
    for _ in range(2_000):
        now += generator.expovariate(3)
        amount = generator.uniform(0.5, 10)
        if not bucket.wait_seconds(amount, now):
            bucket.take(amount, now)
            taken.append((now, amount))
    assert len(taken) > 100
    for first in range(0, len(taken), 37):
        total = 0.0
        for at, amount in taken[first:]:
            total += amount
            assert total <= 10 + 2.5 * (at - taken[first][0]) + 1e-6


def test_bucket_says_when_it_will_hold_enough_and_pays_its_debt_first():
    bucket = Bucket(rate=2, capacity=6, now=0.0)
    bucket.take(16, 0.0)
    assert bucket.wait_seconds(1, 0.0) == 5.5
    assert bucket.wait_seconds(1, 5.0) == 0.5
    assert bucket.wait_seconds(1, 5.5) == 0


def test_bucket_that_rests_holds_no_more_than_its_capacity():
    bucket = Bucket(rate=2, capacity=6, now=0.0)
    bucket.take(6, 1e9)
    assert bucket.wait_seconds(1, 1e9) == 0.5


@pytest.mark.parametrize(("capacity", "wait"), [(6, 1.5), (10, 0.0), (2, 3.5)])
def test_bucket_inherits_what_was_used(capacity, wait):
    before = Bucket(rate=1, capacity=6, now=0.0)
    before.take(8, 0.0)
    bucket = Bucket(rate=2, capacity=capacity, now=0.0)
    bucket.inherit(before)
    assert bucket.wait_seconds(1, 0.0) == wait
