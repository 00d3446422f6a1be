"""More requests than rows: who is refused, when, and what it costs; deadlines; open connections."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from carousel.service.engine.admission.overload import WINDOW_SECONDS, WINDOWS
from carousel.service.engine.admission.queue_time import QueueTime
from carousel.service.engine.runner import OnnxRunner

PATHS = {
    "/v1/completions": "/v1/completions",
    "/v1/models/tiny/next-token": "/v1/models/{model}/next-token",
    "/v1/models/tiny/score": "/v1/models/{model}/score",
    "/v1/models/tutor/trace": "/v1/models/{model}/trace",
    "/v1/models/scenes/captions": "/v1/models/{model}/captions",
    "/v1/models/scenes/captions/attention.svg": "/v1/models/{model}/captions/attention.svg",
}


@contextmanager
def every_place_taken(server):
    """Of all models: what comes now is refused."""
    engines = [model.engine for model in server.context.repository.models.values()]
    for engine in engines:
        engine._controller.taken += engine.describe().max_admitted
    try:
        yield
    finally:
        for engine in engines:
            engine._controller.taken -= engine.describe().max_admitted


def sample(server, name, **labels):
    return server.context.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("path", PATHS)
def test_refusal_comes_before_a_byte_of_the_body(server, raw_client, path, eventually):
    connection = raw_client()
    model = path.split("/")[3] if "models" in path else "tiny"
    labels = {"model": model, "version": "1"}
    ends = labels | {"endpoint": PATHS[path], "outcome": "capacity_exceeded"}

    def counts():
        return (
            sample(server, "carousel_requests_total", **ends),
            sample(server, "carousel_shed_total", **labels, reason="full"),
        )

    before = counts()
    with every_place_taken(server):
        connection.socket.sendall(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            "Content-Length: 4000000\r\n\r\n".encode()
        )
        status, headers, body = read_response(connection.socket)
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "capacity_exceeded", True)
    assert int(headers["retry-after"]) >= 1  # by how long rows were held before
    assert "x-request-id" in headers
    eventually(lambda: counts() == (before[0] + 1, before[1] + 1))  # it is counted once it is sent


def test_refused_connection_goes_on(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        stream = client.get("/livez").extensions["network_stream"].get_extra_info("client_addr")
        with every_place_taken(server):
            for _ in range(3):
                response = client.post("/v1/models/tiny/next-token", content=b"x" * 100_000)
                assert response.status_code == 503
        response = client.post("/v1/models/tiny/next-token", json={"text": "abc"})
        assert response.status_code == 200
        assert response.extensions["network_stream"].get_extra_info("client_addr") == stream


def test_full_model_refuses_nothing_but_what_runs_it(server, client, refused):
    with every_place_taken(server):
        assert client.get("/v1/models/tiny").status_code == 200
        refused(client.get("/v1/models/tiny/sessions/nobody"), 404, "unknown_session")
        refused(client.post("/v1/models/none/score", json={"text": "abc"}), 404, "unknown_model")
        refused(client.post("/v1/models/tiny/nothing", json={}), 404, "not_found")
        assert client.get("/readyz").status_code == 200


def test_retry_after_tells_how_long_the_queue_is(run_server):
    with run_server(max_rows=2, max_waiting=100, max_wait_seconds=7.0) as server:
        engine = server.context.repository.models["tiny"].engine
        engine._controller.queue_time.ended(4.0, asked=1)  # a round of two takes four seconds
        engine._controller.take(4, batch=False)
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            response = client.post("/v1/models/tiny/next-token", json={"text": "abc"})
        assert response.status_code == 503
        assert 8 <= int(response.headers["retry-after"]) <= 16
        assert response.json()["error"]["message"] == (
            "tiny: a row would be free in 8 s; allowed are 7; try again in 8 s"
        )
        assert sample(server, "carousel_shed_total", model="tiny", version="1", reason="wait") == 1
        engine._controller.leave(4, batch=False, started=False)


def test_request_whose_time_is_over_is_a_504(server, client, refused, ended):
    body = {"tokens": [2] * 4_000, "timeout_seconds": 1e-6}
    message = refused(client.post("/v1/models/tiny/score", json=body), 504, "deadline_exceeded", retryable=True)
    assert message == "tiny: 1e-06 s are over; ask for less, or for more time"
    completion = {"model": "tiny", "prompt": "abc", "max_tokens": 4_000, "timeout_seconds": 1e-6}
    refused(client.post("/v1/completions", json=completion), 504, "deadline_exceeded", retryable=True)
    attempts = [{"skill": 0, "correct": True}] * 4_000
    body = {"attempts": attempts, "each": True, "timeout_seconds": 1e-6}
    refused(client.post("/v1/models/tutor/trace", json=body), 504, "deadline_exceeded", retryable=True)
    ended(deadline_exceeded=3)


def test_stream_that_ends_before_its_first_event_has_a_status_of_its_own(run_server, refused, eventually, monkeypatch):
    goes_on, one_more = threading.Event(), threading.Semaphore(0)

    class Runner(OnnxRunner):
        def bind(self, arrays):
            step = super().bind(arrays)

            def held() -> None:
                if not one_more.acquire(blocking=False):
                    goes_on.wait(60)
                step()

            return held

    monkeypatch.setattr("carousel.service.served.opening.OnnxRunner", Runner)
    goes_on.set()
    with ExitStack() as stack:
        server = stack.enter_context(run_server(max_rows=1))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60, trust_env=False))
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.callback(goes_on.set)

        def ask(**fields):
            body = {"model": "tiny", "prompt": "abc", "max_tokens": 9, "stream": True}
            return client.post("/v1/completions", json={**body, **fields})

        refused(ask(timeout_seconds=1e-6), 504, "deadline_exceeded", retryable=True)
        goes_on.clear()
        one_more.release()  # that in which the first joins: who has a row is known when a step has been told
        engine = server.context.repository.models["tiny"].engine
        runs = pool.submit(ask)
        eventually(lambda: engine.describe().running == 1)
        waits = [pool.submit(ask)]
        eventually(lambda: engine.describe().waiting == 1)
        waits.append(pool.submit(ask))
        eventually(lambda: engine.describe().waiting == 2)
        engine._controller.queue_time = QueueTime(1)
        engine._controller.queue_time.ended(1e6, asked=3 + 9)  # a row is free in days
        overload = engine._controller.overload
        overload._since, overload._windows = time.perf_counter() - WINDOW_SECONDS, WINDOWS - 1
        overload._short, overload._turned_away = False, 1
        refused(ask(), 503, "capacity_exceeded", retryable=True)
        ended = waits[1].result()
        assert "more come than can be served" in refused(ended, 503, "capacity_exceeded", retryable=True)
        assert 60 <= int(ended.headers["retry-after"]) <= 90
        goes_on.set()
        assert runs.result().text.endswith("data: [DONE]\n\n")
        assert waits[0].result().text.endswith("data: [DONE]\n\n")  # it was the first to wait


def test_image_whose_time_is_over_is_a_504(client, picture, refused):
    form = {"timeout_seconds": "0.000001", "priority": "batch"}
    response = client.post("/v1/models/endless/captions", files={"image": picture()}, data=form)
    refused(response, 504, "deadline_exceeded", retryable=True)


def test_stream_whose_time_is_over_ends_with_the_error(server, client, connect, ended):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 4_000, "stream": True, "timeout_seconds": 0.02}
    events = client.post("/v1/completions", json=body).text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    stream = connect()
    stream.send(type="start", prompt="abc", sampling={"max_tokens": 4_000}, timeout_seconds=0.02)
    error, code = stream.refusal()
    assert (error["code"], error["retryable"], code) == ("deadline_exceeded", True, 4504)
    ended(deadline_exceeded=2)
    assert sample(server, "carousel_shed_total", model="tiny", version="1", reason="deadline") >= 2


def test_setting_bounds_every_request(run_server, connect):
    with run_server(deadline_seconds=0.02) as server:
        stream = connect(server)
        stream.start("abc", max_tokens=4_000)
        assert stream.refusal()[0]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("fields", [{"priority": "urgent"}, {"timeout_seconds": 0}, {"timeout_seconds": "5"}])
def test_urgency_that_makes_no_sense_is_refused(client, refused, fields):
    refused(client.post("/v1/models/tiny/next-token", json={"text": "abc", **fields}), 422, "invalid_request")


def test_connection_too_many_is_refused_and_the_others_go_on(run_server):
    with run_server(max_connections=3) as server:
        open_ones = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(3)]
        for one in open_ones:
            assert ask(one, "/livez")[0] == 200  # it is counted by now
        with socket.create_connection(("127.0.0.1", server.port), 60) as excess:
            status, headers, body = ask(excess, "/livez")
            assert (status, body["error"]["code"], headers["connection"]) == (503, "capacity_exceeded", "close")
            assert 5 <= int(headers["retry-after"]) <= 10
            assert excess.recv(1) == b""
        for one in open_ones:
            assert ask(one, "/livez")[0] == 200
        labels = {"model": "unknown", "version": "unknown", "reason": "connections"}
        assert sample(server, "carousel_shed_total", **labels) == 1
        open_ones.pop().close()
        while ask(again := socket.create_connection(("127.0.0.1", server.port), 60), "/livez")[0] == 503:
            again.close()  # the server has not noticed yet that one is gone
        for one in (*open_ones, again):
            one.close()


def ask(connection, path):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return read_response(connection)


def read_response(connection):
    """Status, headers, JSON body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (chunk := connection.recv(4096))
        assert chunk, data
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += connection.recv(4096)
    return int(lines[0].split()[1]), headers, json.loads(body)
