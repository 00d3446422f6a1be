"""Clients that vanish, that do not read, and more of them than there is room: none costs another anything."""

import httpx
import pytest

LONG = 60_000
"""Tokens: many seconds of generation, where a client's end must be seen at once."""


@pytest.fixture
def engine(server):
    return server.context.repository.models["tiny"].engine


@pytest.mark.parametrize("goodbye", ["close", "reset"])
def test_websocket_client_that_vanishes_frees_its_row(raw_client, engine, eventually, ended, unchanged, goodbye):
    with unchanged():
        connection = raw_client()
        connection.upgrade("/v1/models/tiny/stream")
        connection.frame({"type": "start", "prompt": "abc", "sampling": {"max_tokens": LONG}})
        connection.socket.recv(1000)
        assert engine.describe().admitted >= 1
        connection.socket.close() if goodbye == "close" else connection.reset()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(ok=2, cancelled=1)


def test_websocket_clients_that_vanish_together_are_all_cancelled(raw_client, engine, eventually, ended):
    connections = [raw_client() for _ in range(24)]  # of 8 rows
    for connection in connections:
        connection.upgrade("/v1/models/tiny/stream")
        connection.frame({"type": "start", "prompt": "abc", "sampling": {"max_tokens": LONG}})
    eventually(lambda: engine.describe().admitted == 24)
    for connection in connections:
        connection.reset()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(cancelled=24)


@pytest.mark.parametrize("goodbye", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["post", "sse"])
@pytest.mark.parametrize("copies", [1, 3])
def test_http_client_that_vanishes_frees_its_rows(
    raw_client, engine, eventually, ended, unchanged, goodbye, stream, copies
):
    with unchanged():
        connection = raw_client()
        connection.post(
            "/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": LONG, "stream": stream, "n": copies}
        )
        eventually(lambda: engine.describe().running >= copies)
        if stream:
            connection.socket.recv(1000)
        connection.socket.close() if goodbye == "close" else connection.reset()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(ok=2, cancelled=1)


@pytest.mark.parametrize("path", ["next-token", "score"])
def test_http_client_that_vanishes_during_a_long_prompt_frees_its_row(raw_client, engine, eventually, ended, path):
    connection = raw_client()
    connection.post(f"/v1/models/tiny/{path}", {"tokens": [2] * 250_000})
    eventually(lambda: engine.describe().running == 1)
    connection.socket.close()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(cancelled=1)


def test_client_that_vanishes_while_its_prompt_is_tokenised_frees_its_place(raw_client, engine, eventually, ended):
    connection = raw_client()
    connection.post("/v1/completions", {"model": "tiny", "prompt": "abcde" * 40_000, "max_tokens": LONG})
    eventually(lambda: engine.describe().admitted == 1)
    connection.socket.close()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(cancelled=1)


def test_websocket_that_never_reads_is_ended(raw_client, server, engine, eventually, ended, connect):
    shed = _shed(server)
    connection = raw_client()
    connection.upgrade("/v1/models/tiny/stream")
    connection.frame({"type": "start", "prompt": "abc", "sampling": {"max_tokens": LONG}})
    eventually(lambda: engine.describe().running == 1)
    assert connect().generate("abc", max_tokens=50)[-1]["reason"] == "length"
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0, seconds=40)
    ended(ok=1, slow_reader=1)
    assert _shed(server) == shed + 1


def test_websocket_that_reads_too_late_is_told_and_closed(connect, engine, raw_client, eventually):
    connection = raw_client()
    connection.upgrade("/v1/models/tiny/stream")
    connection.frame({"type": "start", "prompt": "abc", "sampling": {"max_tokens": LONG}})
    eventually(lambda: engine.describe().running == 1)
    eventually(lambda: engine.describe().running == 0, seconds=40)
    received = b""
    while not received.endswith(b"\x11\x38"):  # 4408
        part = connection.socket.recv(65_536)
        assert part, "closed without a close frame"
        received += part
    assert b'"type":"error","code":"slow_reader"' in received
    assert b'"retryable":true' in received


@pytest.mark.parametrize("copies", [1, 2])
def test_sse_client_that_never_reads_is_ended(raw_client, server, engine, eventually, ended, client, copies):
    shed = _shed(server)
    connection = raw_client()
    connection.post(
        "/v1/completions",
        {"model": "tiny", "prompt": "abc", "max_tokens": LONG, "stream": True, "logprobs": 5, "n": copies},
    )
    eventually(lambda: engine.describe().running == copies)
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}).status_code == 200
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0, seconds=40)
    ended(ok=1, slow_reader=1)
    assert _shed(server) == shed + copies


def test_sse_client_that_reads_too_late_is_told(raw_client, engine, eventually):
    connection = raw_client()
    connection.post("/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": LONG, "stream": True})
    eventually(lambda: engine.describe().running == 1)
    eventually(lambda: engine.describe().running == 0, seconds=40)
    received = b""
    while b"slow_reader" not in received:
        part = connection.socket.recv(65_536)
        assert part, "closed before the error"
        received += part
    assert b"[DONE]" not in received


def test_post_client_that_never_reads_its_answer_holds_no_place(raw_client, engine, eventually):
    connection = raw_client()
    connection.post("/v1/models/tiny/score", {"tokens": [2] * 4_000})
    eventually(lambda: engine.describe().running == 1)
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)


def test_request_beyond_capacity_is_refused(run_server, connect, eventually):
    with run_server(max_rows=1, max_waiting=0) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        running = connect(server)
        running.start("abc", max_tokens=LONG)
        assert running.receive()["type"] == "accepted"
        requests = [
            ("/v1/completions", {"model": "tiny", "prompt": "abc"}),
            ("/v1/completions", {"model": "tiny", "prompt": "abc", "stream": True}),
            ("/v1/models/tiny/next-token", {"text": "abc"}),
            ("/v1/models/tiny/score", {"text": "abc"}),
        ]
        for path, body in requests:
            response = client.post(path, json=body)
            assert response.status_code == 503
            assert 1 <= int(response.headers["retry-after"]) <= 60
            error = response.json()["error"]
            assert (error["code"], error["retryable"]) == ("capacity_exceeded", True)
        refused = connect(server)
        refused.start("abc")
        error, code = refused.refusal()
        assert (error["code"], error["retryable"], code) == ("capacity_exceeded", True, 4503)
        assert client.get("/readyz").status_code == 200
        running.send(type="cancel")
        assert running.rest()[-1]["reason"] == "cancelled"
        for path, body in requests:
            assert client.post(path, json=body).status_code == 200
        engine = server.context.repository.models["tiny"].engine
        eventually(lambda: engine.describe().admitted == 0)


def test_request_within_capacity_waits_its_turn(run_server, connect, eventually):
    with run_server(max_rows=1, max_waiting=1) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        engine = server.context.repository.models["tiny"].engine
        running, waiting = connect(server), connect(server)
        running.start("abc", max_tokens=LONG)
        assert [running.receive()["type"] for _ in range(2)] == ["accepted", "token"]
        waiting.start("abc", max_tokens=7)
        assert waiting.receive()["type"] == "accepted"
        eventually(lambda: (engine.describe().running, engine.describe().waiting) == (1, 1))
        assert client.post("/v1/models/tiny/next-token", json={"text": "a"}).status_code == 503
        running.send(type="cancel")
        assert running.rest()[-1]["reason"] == "cancelled"
        assert waiting.rest()[-1]["usage"]["completion_tokens"] == 7


def test_refused_request_of_many_prompts_leaves_no_place_taken(run_server, eventually):
    with run_server(max_rows=2, max_waiting=1) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        too_many = client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 4})
        assert too_many.json()["error"]["code"] == "invalid_request"  # it could never be served
        engine = server.context.repository.models["tiny"].engine
        taken = engine.admit()
        response = client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 3})
        assert response.json()["error"]["code"] == "capacity_exceeded"
        engine.leave(taken)
        eventually(lambda: engine.describe().admitted == 0)
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 3}).status_code == 200


def _shed(server) -> float:
    labels = {"model": "tiny", "version": "1", "reason": "slow_reader"}
    return server.context.metrics.registry.get_sample_value("carousel_shed_total", labels) or 0.0
