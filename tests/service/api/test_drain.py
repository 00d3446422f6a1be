"""A server that is told to stop: what it says meanwhile, who may finish, and what the others are told."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

from tests.service.api.conftest import StreamClient

LONG = 60_000
"""Tokens: many seconds of generation."""

SHUTTING_DOWN = ("shutting_down", True)
"""Code and retryable."""


@pytest.fixture
def http():
    """An HTTP client of any server; it opens a connection for each request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as client:
        yield client


def test_drain_refuses_new_work_and_lets_what_runs_finish(run_server, connect, http, refused, eventually, outcomes):
    with run_server(shutdown_grace_seconds=600) as server:
        running, idle = connect(server), connect(server)
        idle.generate("abc", max_tokens=2)
        running.start("abc", max_tokens=LONG)
        assert running.receive()["type"] == "accepted"
        assert http.get(f"{server.url}/readyz").status_code == 200
        server.stop()
        error, code = idle.refusal()
        assert ((error["code"], error["retryable"]), code) == (SHUTTING_DOWN, 4503)
        refused(http.get(f"{server.url}/readyz"), 503, *SHUTTING_DOWN)
        assert http.get(f"{server.url}/livez").status_code == 200
        assert "carousel_ready 0.0" in http.get(f"{server.url}/metrics").text
        response = http.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "abc"})
        refused(response, 503, *SHUTTING_DOWN)
        assert response.headers["retry-after"] in ("1", "2", "3")
        assert response.headers["connection"] == "close"
        error, code = connect(server).refusal()
        assert ((error["code"], error["retryable"]), code) == (SHUTTING_DOWN, 4503)
        running.send(type="cancel")
        assert running.rest()[-1]["reason"] == "cancelled"
        error, code = running.refusal()
        assert (error["code"], code) == ("shutting_down", 4503)
        eventually(lambda: outcomes(server) == {"ok": 1, "shutting_down": 2, "cancelled": 1})


def test_stream_that_ends_within_the_grace_is_whole(run_server, connect, http):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 300, "seed": 7, "stream": True}
    with run_server(shutdown_grace_seconds=600) as server:
        expected = connect(server).generate("abc", seed=7, max_tokens=300)[1:]
        stream = connect(server)
        stream.start("abc", seed=7, max_tokens=300)
        assert stream.receive()["type"] == "accepted"
        with http.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            server.stop()
            assert stream.rest() == expected
            assert stream.refusal()[1] == 4503
            assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


def test_grace_that_runs_out_ends_streams_like_a_cancel_and_says_so(run_server, connect, http, refused, start_redis):
    redis = start_redis()
    with run_server(shutdown_grace_seconds=0, redis_url=redis.url) as server, ThreadPoolExecutor(1) as thread:
        engine = server.context.repository.models["tiny"].engine
        stream = connect(server)
        stream.send(type="start", prompt="abc", session="socket", sampling={"max_tokens": LONG})
        assert [stream.receive()["type"] for _ in range(2)] == ["accepted", "token"]
        fields = {"model": "tiny", "prompt": "abc", "max_tokens": LONG}
        url = f"{server.url}/v1/completions"
        answer = thread.submit(httpx.post, url, json={**fields, "session": "post"}, timeout=60)
        with http.stream("POST", url, json={**fields, "session": "events", "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            while engine.describe().running < 3:
                next(lines)
            server.stop()
            events = [line for line in lines if line]
        *_, end, last = (json.loads(event.removeprefix("data: ")) for event in events)
        assert (end["choices"][0]["finish_reason"], end["session"]) == ("cancelled", "events")
        assert (last["error"]["code"], last["error"]["retryable"]) == SHUTTING_DOWN
        finished = stream.rest()[-1]
        assert (finished["reason"], finished["session"]) == ("cancelled", "socket")
        error, code = stream.refusal()
        assert ((error["code"], error["retryable"]), code) == (SHUTTING_DOWN, 4503)
        refused(answer.result(), 503, *SHUTTING_DOWN)
        assert answer.result().headers["retry-after"] in ("1", "2", "3")
    with run_server(redis_url=redis.url) as server:
        sessions = f"{server.url}/v1/models/tiny/sessions"
        for name in ("socket", "events"):
            assert http.get(f"{sessions}/{name}").json()["steps"] > 3
        assert http.get(f"{sessions}/post").status_code == 404  # a request that fails changes nothing


def test_grace_that_runs_out_ends_a_caption_and_who_reads_nothing(run_server, connect, http, picture, raw_client):
    with run_server(shutdown_grace_seconds=0) as server:
        engine = server.context.repository.models["endless"].engine
        silent = raw_client(server)
        silent.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": LONG, "stream": True})
        stream = connect(server, model="endless")
        stream.socket.send(picture())
        assert stream.receive()["type"] == "accepted"
        url = f"{server.url}/v1/models/endless/captions"
        parts = {"files": {"image": ("photo", picture())}, "data": {"stream": "true"}}
        with http.stream("POST", url, **parts) as response:
            lines = response.iter_lines()
            next(lines)
            while engine.describe().running < 2:
                next(lines)
            server.stop()
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert (events[-2]["type"], events[-2]["reason"]) == ("finished", "cancelled")
        assert (events[-1]["type"], events[-1]["code"], events[-1]["retryable"]) == ("error", *SHUTTING_DOWN)
        assert stream.rest()[-1]["reason"] == "cancelled"
        assert stream.refusal()[1] == 4503


@pytest.mark.parametrize("signals", [1, 2])
def test_signal_ends_the_process_without_a_traceback(signals, all_models, eventually, http, tmp_path):
    environment = os.environ | {
        "CAROUSEL_REPOSITORY": str(all_models),
        "CAROUSEL_PORT": "0",
        "CAROUSEL_SHUTDOWN_GRACE_SECONDS": "600" if signals == 2 else "0",
    }
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stderr=file)
    try:
        eventually(lambda: "ready on http" in log.read_text(), seconds=60)
        address = log.read_text().partition("ready on http://")[2].split()[0]
        with websockets_connect(f"ws://{address}/v1/models/tiny/stream", proxy=None, close_timeout=0.1) as socket:
            stream = StreamClient(socket)
            stream.start("abc", max_tokens=LONG)
            assert stream.receive()["type"] == "accepted"
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                eventually(lambda: http.get(f"http://{address}/readyz").status_code == 503)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == -signal.SIGTERM
            else:
                assert stream.rest()[-1]["reason"] == "cancelled"
                assert stream.refusal()[0]["code"] == "shutting_down"
                process.wait(20)
        assert "Traceback" not in log.read_text()
        assert "ERROR" not in log.read_text()
    finally:
        process.kill()
        process.wait()
