"""Frames that no client means: whatever comes over a socket, it ends with a typed error, and nobody else notices."""

from __future__ import annotations

import json
import socket as sockets

import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websockets_connect

TYPES = {
    "accepted": {"type", "request_id", "model", "version", "prompt_tokens", "cached_tokens", "unknown_tokens"},
    "token": {"type", "index", "token", "text", "logprob"},
    "finished": {"type", "reason", "text", "usage"},
    "error": {"type", "code", "message", "retryable"},
}
MAY_BE_TOLD = {"attention", "session", "state"}

values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.floats(), st.text(max_size=20),
        st.sampled_from([2**63, -(2**63), 10**400, "\ud800", "abc", "start", ""]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
sampling = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 30)},
    optional={"temperature": values, "top_k": values, "seed": values, "stop": values},
)
starts = st.fixed_dictionaries(
    {"type": st.sampled_from(["start", "feed"])},
    optional={
        "prompt": st.text(alphabet="abcdef", max_size=9), "tokens": st.lists(st.integers(-1, 13), max_size=5),
        "sampling": sampling, "session": values, "state": values, "return_state": st.booleans(), "image": values,
        "priority": st.sampled_from(["interactive", "batch", "first"]), "timeout_seconds": values,
    },
)  # fmt: skip
sound = st.builds(
    lambda kind, length: {"type": kind, "prompt": "abc", "sampling": {"max_tokens": length}},
    st.sampled_from(["start", "start", "feed"]),
    st.integers(1, 400),
)
messages = st.one_of(sound, starts, st.just({"type": "cancel"}), st.dictionaries(st.text(max_size=8), values), values)
texts = messages.map(json.dumps)
truncated = st.builds(lambda text, share: text[: int(len(text) * share)], texts, st.floats(0, 1))
frames = st.one_of(texts, texts, truncated, st.text(max_size=200), st.binary(max_size=200), st.just("[" * 3_000))
EXAMPLES = 300


def utf8(frame):
    """As a client can send it: half of a surrogate pair is no text."""
    return frame.encode(errors="replace").decode() if isinstance(frame, str) else frame


def check_event(data):
    event = json.loads(data)
    wanted = TYPES[event["type"]]
    assert wanted <= event.keys() <= wanted | MAY_BE_TOLD
    return event["type"]


def read_all(client, kinds):
    """The kinds of all events that come; gives the close code."""
    try:
        while True:
            kinds.append(check_event(client.recv(timeout=30)))
    except ConnectionClosed as closed:
        return closed.rcvd and closed.rcvd.code


@pytest.fixture(scope="module", params=["tiny", "scenes"])
def model(request, server):
    return server.context.repository.models[request.param]


def test_socket_ends_with_a_typed_error_whatever_it_was_sent(server, model, eventually, draw):
    for sent in draw(st.lists(frames, max_size=6), EXAMPLES):
        kinds = []
        with websockets_connect(server.socket_url(model.name), proxy=None, compression=None) as client:
            try:
                for frame in [*sent, '{"type":']:  # the last one is refused by all
                    client.send(utf8(frame))
            except ConnectionClosed:
                pass  # one before was refused already
            code = read_all(client, kinds)
        assert kinds[-1:] == ["error"], (kinds, code)
        assert kinds.count("error") == 1
        assert code is not None, "the socket broke off"
        assert code == 1003 or 4400 <= code < 4500, code
    eventually(lambda: (model.engine.describe().admitted, model.engine.describe().running) == (0, 0))
    assert model.failure is None


def test_bytes_that_are_no_frames_close_the_socket_and_cost_no_row(server, model, eventually, draw):
    handshake = (
        f"GET /v1/models/{model.name}/stream HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    start = json.dumps({"type": "start", "prompt": "abc", "sampling": {"max_tokens": 400}}).encode()
    begun = bytes([0x81, 0x80 | len(start), 0, 0, 0, 0]) + start

    for junk, generating, vanishing in draw(st.tuples(st.binary(max_size=300), st.booleans(), st.booleans()), EXAMPLES):
        with sockets.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(handshake + (begun if generating else b"") + junk)
            if vanishing:
                client.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                continue
            client.shutdown(sockets.SHUT_WR)
            received = b""
            while chunk := client.recv(65_536):
                received += chunk
            assert received.startswith(b"HTTP/1.1 101 ")
    eventually(lambda: (model.engine.describe().admitted, model.engine.describe().running) == (0, 0))
    assert model.failure is None
