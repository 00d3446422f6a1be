"""A second request on the same connection, sent before the first is answered."""

from __future__ import annotations

import json
import socket

import pytest

LONG = 60_000


@pytest.fixture
def engine(server):
    return server.context.repository.models["tiny"].engine


def request(path, body=None):
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode() + content


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_is_noticed_behind_a_pipelined_request(server, engine, eventually, stream):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": LONG, "stream": stream}
    port = int(server.url.rsplit(":", 1)[1])
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for connection in connections:
        connection.sendall(request("/v1/completions", body) + request("/livez"))
    eventually(lambda: engine.describe().running == 3)
    for connection in connections:
        connection.close()
    eventually(lambda: engine.describe().running == 0 and engine.describe().admitted == 0)


def test_pipelined_requests_are_answered_in_order(server):
    port = int(server.url.rsplit(":", 1)[1])
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 20, "stream": True}
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request("/v1/completions", body) + request("/livez"))
        received = b""
        while received.count(b"HTTP/1.1 200") < 2 or not received.endswith(b"}"):
            part = connection.recv(65_536)
            assert part
            received += part
    assert received.index(b"[DONE]") < received.rindex(b"HTTP/1.1 200")
