"""Sessions in Redis: any number of service processes on one, restarted as one likes."""

from __future__ import annotations

import pytest

ATTEMPTS = [{"skill": place % 5, "correct": place % 3 == 0} for place in range(12)]
TRACE = "/v1/models/tutor/trace"


@pytest.fixture
def store(start_redis):
    """A redis-server that a test may end."""
    return start_redis()


def test_two_processes_alternate_on_one_session(run_server, store, client):
    cold = client.post(TRACE, json={"attempts": ATTEMPTS, "each": True}).json()
    with run_server(redis_url=store.url) as one, run_server(redis_url=store.url) as two:
        told = []
        for place, attempt in enumerate(ATTEMPTS):
            url = (one, two)[place % 2].url + TRACE
            answer = client.post(url, json={"attempts": [attempt], "each": True, "session": "shared"}).json()
            told += answer["each"]
        assert told == cold["each"]
        assert answer["predictions"] == cold["predictions"]
        pictures = [client.get(f"{each.url}{TRACE}/shared/mastery.svg").text for each in (one, two)]
        assert pictures[0] == pictures[1]
        assert "attempts 1 to 12" in pictures[0]
        assert client.get(f"{one.url}/v1/models/tutor/sessions/shared").json()["steps"] == 12


def test_session_outlives_the_service(run_server, store, client):
    text = "abcdefghijk"
    whole = client.post("/v1/models/tiny/score", json={"text": text}).json()["tokens"]
    told = []
    for part in (text[:4], text[4:5], text[5:]):
        with run_server(redis_url=store.url) as server:
            body = {"text": part, "session": "kept"}
            told += client.post(f"{server.url}/v1/models/tiny/score", json=body).json()["tokens"]
    assert told == whole


def test_store_that_is_away_is_told_and_spares_who_needs_no_session(run_server, store, client, refused):
    with run_server(redis_url=store.url) as server:
        store.stop()
        response = client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"})
        refused(response, 503, "session_store_unavailable", retryable=True)
        assert response.headers["retry-after"] in ("1", "2", "3")
        assert client.post(server.url + TRACE, json={"attempts": ATTEMPTS}).status_code == 200


def test_redis_that_is_killed_in_the_middle_of_a_cohort_loses_no_learner(run_server, start_redis, client, refused):
    redis = start_redis("--appendonly", "yes", "--appendfsync", "always")
    learners = {f"learner-{place}": ATTEMPTS[place:] for place in range(5)}
    cold = {name: client.post(TRACE, json={"attempts": attempts}).json() for name, attempts in learners.items()}
    with run_server(redis_url=redis.url) as server:
        url = server.url + TRACE
        for name, attempts in learners.items():
            assert client.post(url, json={"attempts": attempts[:3], "session": name}).status_code == 200
        redis.stop(kill=True)
        lost = client.post(url, json={"attempts": ATTEMPTS[:1], "session": "learner-0"})
        refused(lost, 503, "session_store_unavailable", retryable=True)
        redis.start()
        for name, attempts in learners.items():
            warm = client.post(url, json={"attempts": attempts[3:], "session": name}).json()
            assert warm["predictions"] == cold[name]["predictions"]


def said(caplog, level, text):
    return [one for one in caplog.records if one.levelname == level and text in one.getMessage()]


def test_store_that_is_away_at_the_start_is_said_once_and_loudly(run_server, store, client, refused, caplog):
    caplog.set_level("INFO", "carousel")
    store.stop()
    url = store.url.replace("redis://", "redis://:a-secret@")
    with run_server(redis_url=url, state_key="k" * 32) as server:
        assert len(said(caplog, "ERROR", f"Redis at 127.0.0.1:{store.port} does not serve sessions")) == 1
        assert client.get(f"{server.url}/readyz").status_code == 200  # what needs no session is served
        for _ in range(2):
            response = client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"})
            refused(response, 503, "session_store_unavailable", retryable=True)
        assert len(said(caplog, "ERROR", "does not serve sessions")) == 1
    assert "a-secret" not in caplog.text
    assert not said(caplog, "WARNING", "CAROUSEL_STATE_KEY")


def test_store_that_comes_back_is_said(run_server, store, client, caplog):
    caplog.set_level("INFO", "carousel")
    with run_server(redis_url=store.url, state_key="k" * 32) as server:
        assert len(said(caplog, "INFO", f"sessions are kept in Redis at 127.0.0.1:{store.port}")) == 1
        assert store.client.keys("*") == []  # what was tried is gone
        store.stop()
        client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"})
        store.start()
        assert client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"}).status_code == 200
    assert len(said(caplog, "ERROR", "does not serve sessions")) == 1
    assert len(said(caplog, "WARNING", "serves sessions again")) == 1


def test_store_that_may_not_be_written_is_said_at_the_start(run_server, start_redis, caplog):
    redis = start_redis("--replicaof", "127.0.0.1", "1")  # a replica, which takes no writes
    with run_server(redis_url=redis.url):
        (told,) = said(caplog, "ERROR", "does not serve sessions")
        assert "ReadOnlyError" in told.getMessage()


def test_no_state_key_is_a_warning_where_replicas_share_sessions(run_server, store, caplog):
    caplog.set_level("INFO", "carousel")
    with run_server():
        assert len(said(caplog, "INFO", "CAROUSEL_STATE_KEY is not set")) == 1
    with run_server(redis_url=store.url):
        (told,) = said(caplog, "WARNING", "CAROUSEL_STATE_KEY is not set")
        assert "nothing at other replicas" in told.getMessage()


def test_session_whose_trail_redis_has_let_go_has_a_picture(run_server, store, client):
    with run_server(redis_url=store.url, state_key="k" * 32) as server:
        assert client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"}).status_code == 200
        store.client.delete(*store.client.keys("*:trail"))
        picture = client.get(f"{server.url}{TRACE}/a/mastery.svg")
        assert picture.status_code == 200
        assert "no attempt is kept" in picture.text
