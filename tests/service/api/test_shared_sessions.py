"""Sessions in Redis: any number of service processes on one, restarted as one likes."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
import redis

ATTEMPTS = [{"skill": place % 5, "correct": place % 3 == 0} for place in range(12)]
TRACE = "/v1/models/tutor/trace"


class Redis:
    """A redis-server on a port of its own, empty, that can be ended."""

    def __init__(self, directory) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""],
            stdout=subprocess.DEVNULL,
        )

    def answers(self) -> bool:
        try:
            with redis.Redis(port=self.port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def store(tmp_path, eventually) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server here; Debian's package of that name brings it")
    instance = Redis(tmp_path)
    try:
        eventually(instance.answers)
        yield instance
    finally:
        instance.end()


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
        store.end()
        response = client.post(server.url + TRACE, json={"attempts": ATTEMPTS, "session": "a"})
        refused(response, 503, "session_store_unavailable", retryable=True)
        assert response.headers["retry-after"] == "1"
        assert client.post(server.url + TRACE, json={"attempts": ATTEMPTS}).status_code == 200
