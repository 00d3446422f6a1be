"""What requests and connections leave is freed at once: a search for garbage holds up every stream's next token."""

from __future__ import annotations

import gc
import weakref

import httpx
import pytest

from carousel.service.server.chunks import ChunkWriter


@pytest.fixture
def no_search():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def alive(monkeypatch):
    """What still lives of the writers and the protocols that were made in this test."""
    writers, protocols = weakref.WeakSet(), weakref.WeakSet()
    begin = ChunkWriter.__init__

    def note(self, protocol):
        begin(self, protocol)
        writers.add(self)
        protocols.add(protocol)

    monkeypatch.setattr(ChunkWriter, "__init__", note)
    return writers, protocols


def _stream(client):
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "stream": True}
    assert client.post("/v1/completions", json=asked).text.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("no_search")
def test_request_on_a_connection_that_stays(server, alive, eventually):
    writers, protocols = alive
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for _ in range(3):
            _stream(client)
        eventually(lambda: len(writers) == 1)  # that of the last request, which its connection knows
        assert len(protocols) == 1


@pytest.mark.usefixtures("no_search")
def test_connection_that_ends(server, alive, eventually):
    for _ in range(3):
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            _stream(client)
    eventually(lambda: not alive[0] and not alive[1])


@pytest.mark.usefixtures("no_search")
def test_connection_that_becomes_a_websocket(connect, alive, eventually):
    socket = connect()
    socket.generate(max_tokens=3)
    eventually(lambda: not alive[0] and not alive[1])
