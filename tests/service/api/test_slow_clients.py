"""What a client may send or take its time for before it is a request: every bound, by raw sockets, beside a stream that
must not notice."""

from __future__ import annotations

import json
import socket
import time

import pytest

from carousel.service.server.http_protocol import MAX_HEADERS, MAX_LINE_BYTES

RECEIVE_SECONDS = 0.5
IDLE_SECONDS = 0.6
GET = b"GET /v1/models HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
UPGRADE = (
    b"GET /v1/models/tiny/stream HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(scope="module")
def hurried(run_server):
    """A server that gives nobody much time."""
    with run_server(receive_seconds=RECEIVE_SECONDS, socket_idle_seconds=IDLE_SECONDS) as server:
        yield server


@pytest.fixture
def beside(hurried, connect):
    """Holds another client's stream against what it is alone, in the same server, while the test runs."""
    expected = connect(hurried).generate("abc", seed=7, max_tokens=400)[1:]
    stream = connect(hurried)
    stream.start("abc", seed=7, max_tokens=400)
    yield
    assert stream.rest()[1:] == expected


@pytest.fixture
def talk(hurried, beside):
    """Sends bytes and gives all that comes back until the server closes, and how long that took."""

    def exchange(content: bytes, *, dribble: bytes = b"") -> tuple[bytes, float]:
        answer, began = b"", time.monotonic()
        with socket.create_connection(("127.0.0.1", hurried.port), 60) as client:
            client.sendall(content)
            client.settimeout(0.02 if dribble else 30)
            while True:
                try:
                    piece = client.recv(65536)
                    if not piece:
                        break
                    answer += piece
                except TimeoutError:
                    assert dribble, "neither an answer nor a close"
                    assert time.monotonic() < began + 30, "a byte now and then keeps the connection"
                    client.sendall(dribble)
                except ConnectionError:
                    break
        return answer, time.monotonic() - began

    return exchange


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of the one answer there is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines
    assert b"x-content-type-options: nosniff" in lines
    assert b"content-length: %d" % len(body) in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)
    return int(lines[0].split()[1]), json.loads(body)["error"]["code"]


HEADS = {
    "a header of 1 MB": b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a header of 1 MB that does not end": b"X: " + b"a" * 1_000_000,
    "a header a little too long": b"X: " + b"a" * MAX_LINE_BYTES + b"\r\n\r\n",
    "10,000 headers": b"".join(b"X-%d: 1\r\n" % place for place in range(10_000)) + b"\r\n",
    "a header too many": b"X: 1\r\n" * MAX_HEADERS + b"\r\n",
    "many long headers": (b"X: " + b"a" * 7_000 + b"\r\n") * 5 + b"\r\n",
}


@pytest.mark.parametrize("start", [GET, POST, UPGRADE], ids=["get", "post", "websocket"])
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
def test_head_that_is_too_large_is_refused(talk, hurried, outcomes, eventually, start, rest):
    before = outcomes(hurried)["head_too_large"]
    answer, _ = talk(start + rest)
    assert refusal(answer) == (431, "head_too_large")
    eventually(lambda: outcomes(hurried)["head_too_large"] == before + 1)


@pytest.mark.parametrize("start", [GET, UPGRADE], ids=["get", "websocket"])
def test_request_line_of_100_kilobytes_is_refused(talk, start):
    method, _, rest = start.partition(b" ")
    path, _, rest = rest.partition(b" ")
    answer, _ = talk(method + b" " + path + b"?" + b"a" * 100_000 + b" " + rest + b"\r\n")
    assert refusal(answer) == (431, "head_too_large")


def test_head_of_the_limits_is_taken(talk, connect, hurried):
    lines = [b"X-%d: %s\r\n" % (place, b"a" * 50) for place in range(MAX_HEADERS - 3)]
    lines.append(b"Y: " + b"a" * (MAX_LINE_BYTES - 1) + b"\r\n")
    answer, _ = talk(GET + b"".join(lines) + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"1;" + b"a" * 200_000, id="chunk extension"),
        pytest.param(b"0\r\nX: " + b"a" * 200_000, id="trailer"),
        pytest.param(b"0\r\n" + b"X: 1\r\n" * 9_000, id="trailers"),
    ],
)
def test_what_comes_with_a_body_and_is_none_is_bounded(talk, hurried, outcomes, eventually, content):
    before = outcomes(hurried)["head_too_large"]
    answer, _ = talk(POST + b"Transfer-Encoding: chunked\r\n\r\n" + content)
    assert refusal(answer) == (431, "head_too_large")
    eventually(lambda: outcomes(hurried)["head_too_large"] == before + 1)


def test_body_in_many_small_chunks_is_taken(talk):
    body = json.dumps({"model": "tiny", "prompt": "abc" * 2_000, "max_tokens": 1}).encode()
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body)
    answer, _ = talk(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer[-300:]


SLOW = {
    "request line": (b"GET /v1", b"a"),
    "header": (GET + b"X: ", b"a"),
    "headers": (GET, b"X: a\r\n"),
    "websocket handshake": (UPGRADE + b"X: ", b"a"),
    "body": (POST + b"Content-Length: 100000\r\n\r\n{", b" "),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


@pytest.mark.parametrize(("content", "dribble"), SLOW.values(), ids=SLOW)
def test_request_that_comes_byte_by_byte_is_ended(talk, hurried, outcomes, eventually, content, dribble):
    before = outcomes(hurried)["request_timeout"]
    answer, seconds = talk(content, dribble=dribble)
    assert refusal(answer) == (408, "request_timeout")
    assert seconds >= RECEIVE_SECONDS
    eventually(lambda: outcomes(hurried)["request_timeout"] == before + 1)


@pytest.mark.parametrize(
    ("content", "answers"),
    [
        pytest.param(b"", 0, id="nothing at all"),
        pytest.param(GET + b"\r\n", 1, id="idle after an answer"),
        pytest.param(b"POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n{", 1, id="answered early"),
    ],
)
def test_connection_on_which_nothing_comes_is_closed(talk, content, answers):
    answer, _ = talk(content)
    assert answer.count(b"HTTP/1.1 ") == answers


@pytest.mark.parametrize(
    ("content", "dribble", "answers"),
    [
        pytest.param(b"\r\n", b"\r\n", 0, id="before a request"),
        pytest.param(GET + b"\r\n", b"\r\n", 1, id="after a request"),
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 900000\r\n\r\n{", b" ", 1, id="after the answer"
        ),
    ],
)
def test_connection_on_which_nothing_comes_but_noise_is_closed(talk, content, dribble, answers):
    answer, _ = talk(content, dribble=dribble)
    assert answer.count(b"HTTP/1.1 ") == answers


def test_connections_one_after_another_do_not_inherit_a_deadline(hurried):
    """A connection that is used now and then lives on, and so does an answer that takes longer than a request may."""
    with socket.create_connection(("127.0.0.1", hurried.port), 60) as client, client.makefile("rb") as lines:
        for _ in range(3):
            body = json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 8_000, "stream": True}).encode()
            began = time.monotonic()
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            while (line := lines.readline()) != b"0\r\n":
                assert line, "closed"
            lines.readline()
            if time.monotonic() - began > RECEIVE_SECONDS:
                break
        client.sendall(GET + b"Connection: close\r\n\r\n")
        assert lines.readline() == b"HTTP/1.1 200 OK\r\n"


def test_socket_that_never_starts_is_closed(hurried, beside, connect):
    error, code = connect(hurried).refusal()
    assert (error["code"], error["retryable"], code) == ("request_timeout", True, 4408)
    assert "CAROUSEL_SOCKET_IDLE_SECONDS" in error["message"]


def test_socket_whose_frame_never_ends_is_closed(hurried, beside, raw_client):
    client = raw_client(hurried)
    client.upgrade("/v1/models/tiny/stream")
    client.socket.sendall(bytes([0x81, 0x80 | 100, 0, 0, 0, 0]) + b"{")
    client.socket.settimeout(0.02)
    answer = b""
    deadline = time.monotonic() + 30
    while not answer:
        assert time.monotonic() < deadline
        try:
            answer = client.socket.recv(4096)
        except TimeoutError:
            client.socket.sendall(b" ")
    assert b"request_timeout" in answer


def test_socket_that_works_longer_than_it_may_idle_is_kept(hurried, connect):
    stream = connect(hurried)
    for _ in range(20):
        began = time.monotonic()
        assert stream.generate("abc", max_tokens=10_000)[-1]["reason"] == "length"
        if time.monotonic() - began > IDLE_SECONDS:
            break


@pytest.mark.parametrize(
    "content", [b"\x16\x03\x01\x02\x00\x01\x00\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 99]
)
def test_what_is_no_http_is_refused(talk, content):
    answer, _ = talk(content)
    assert refusal(answer) == (400, "malformed_http")


def test_body_that_breaks_off_is_refused(talk, hurried, outcomes, eventually):
    before = outcomes(hurried)["malformed_http"]
    answer, _ = talk(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n")
    assert refusal(answer) == (400, "malformed_http")
    eventually(lambda: outcomes(hurried)["malformed_http"] == before + 1)


def test_second_request_that_is_broken_ends_the_first_without_a_word(hurried, eventually):
    body = json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 60_000, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", hurried.port), 60) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(1024).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"\x00\x01\x02\r\n\r\n")
        rest = b""
        while piece := client.recv(65536):
            rest += piece
        assert b"HTTP/1.1" not in rest
    engine = hurried.context.repository.models["tiny"].engine
    eventually(lambda: engine.describe().running == 0)


def test_client_of_http_1_0_gets_events_without_chunks(talk):
    body = json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 4, "stream": True}).encode()
    answer, _ = talk(POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    head, _, events = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    blocks = events.decode().removesuffix("\n\n").split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    assert all(json.loads(block.removeprefix("data: "))["object"] == "text_completion" for block in blocks[:-1])
    answer, _ = talk(b"GET /v1/models HTTP/1.0\r\n\r\n")
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(content) in head.lower()
