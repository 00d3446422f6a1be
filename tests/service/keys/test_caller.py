import asyncio

import pytest

from carousel.service.errors import RequestError
from carousel.service.keys.caller import ANONYMOUS, CALLER, Caller, current_caller
from carousel.service.keys.key_file import Key, Limits


def caller(clock=lambda: 0.0, **limits):
    return Caller(Key("ada", "school", bytes(32), Limits(**limits)), clock)


def refusal(caller, **how):
    with pytest.raises(RequestError) as error:
        caller.admit(**how)
    assert error.value.status == 429
    assert error.value.retryable
    assert "key ada " in error.value.message
    return error.value.code, error.value.retry_after_seconds


def test_caller_is_everybody_where_nobody_asks_for_a_key():
    everybody = current_caller()
    assert (everybody.name, everybody.tenant, everybody.metered) == (None, ANONYMOUS, False)
    for _ in range(1_000):
        everybody.admit()


async def test_caller_is_that_of_the_task_its_tasks_and_its_threads():
    async def serve(name):
        CALLER.set(Caller(Key(name, f"of {name}", bytes(32))))
        await asyncio.sleep(0)
        return [
            current_caller().name,
            await asyncio.create_task(look()),
            await asyncio.to_thread(lambda: current_caller().name),
        ]

    async def look():
        return current_caller().name

    assert await asyncio.gather(serve("ada"), serve("bob")) == [["ada"] * 3, ["bob"] * 3]
    assert current_caller().name is None


def test_requests_are_refused_beyond_the_burst_and_told_when_to_come_again():
    now = 0.0
    ada = caller(lambda: now, requests_per_second=0.5, burst=3)
    for _ in range(3):
        ada.admit()
    assert refusal(ada) == ("rate_limited", 2)
    now = 1.0
    assert refusal(ada) == ("rate_limited", 1)
    now = 2.0
    ada.admit()
    assert refusal(ada) == ("rate_limited", 2)


@pytest.mark.parametrize(("rate", "burst"), [(7, 7), (0.25, 1)])
def test_burst_is_a_seconds_worth_and_at_least_one_where_it_is_not_given(rate, burst):
    ada = caller(requests_per_second=rate)
    for _ in range(burst):
        ada.admit()
    assert refusal(ada)[0] == "rate_limited"


def test_quota_ends_what_runs_a_model_and_nothing_else_and_comes_back_evenly():
    now = 0.0
    ada = caller(lambda: now, tokens_per_minute=120)
    ada.spend(119)
    ada.admit()
    ada.spend(21)  # more than is left: known only now, and paid back first
    assert refusal(ada) == ("quota_exceeded", 11)
    ada.admit(runs_model=False)
    now = 10.5
    ada.admit()


def test_both_quotas_hold():
    now = 0.0
    ada = caller(lambda: now, tokens_per_minute=60, tokens_per_day=86.4)
    ada.spend(60)
    assert refusal(ada) == ("quota_exceeded", 1)
    ada.spend(27)
    assert refusal(ada) == ("quota_exceeded", 1_600)  # the longer of two waits
    ada.spend(-27)
    now = 60.0
    ada.admit()
    ada.spend(27)
    now = 120.0
    assert refusal(ada) == ("quota_exceeded", 1_480)


def test_refused_request_is_not_counted():
    now = 0.0
    ada = caller(lambda: now, requests_per_second=1, burst=2, tokens_per_day=86_400)
    ada.spend(86_400)
    for _ in range(50):
        assert refusal(ada)[0] == "quota_exceeded"
    now = 1.0
    ada.admit()
    ada.admit()
