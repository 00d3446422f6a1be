"""The server's own protocols: frames written past ASGI, read by the websockets library; connections taken in."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from websockets.protocol import CLIENT, Protocol

from carousel.service.server.http_protocol import HttpProtocol
from carousel.service.server.stream_protocol import StreamProtocol


class Transport:
    def __init__(self):
        self.written = b""

    def write(self, data):
        self.written += data


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_frames_of_every_length_are_what_a_client_reads(size):
    protocol = StreamProtocol.__new__(StreamProtocol)
    protocol.transport = Transport()
    text = ("é" * size)[: size // 2] + "x" * (size % 2)  # two bytes a letter
    protocol.write_text(text)
    protocol.write_text("next")
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(protocol.transport.written)
    assert [bytes(frame.data).decode() for frame in client.events_received()] == [text, "next"]


def test_who_connects_while_the_event_loop_is_busy_is_accepted_in_a_few_turns(run_server, monkeypatch):
    made, turns, go, held = [], [], threading.Event(), threading.Event()
    connection_made = HttpProtocol.connection_made

    def note(protocol, transport):
        made.append(transport)
        connection_made(protocol, transport)

    def turn(loop):
        turns.append(len(made))
        if len(made) < 64:
            loop.call_soon(turn, loop)

    def hold(loop):
        held.set()
        assert go.wait(30)
        turn(loop)

    monkeypatch.setattr(HttpProtocol, "connection_made", note)
    with run_server() as server, ExitStack() as stack:
        loop = server.context.repository.models["tiny"].engine._loop
        loop.call_soon_threadsafe(hold, loop)
        assert held.wait(30)
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        go.set()
        deadline = time.monotonic() + 30
        while len(made) < 64 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(made) == 64
    assert len(turns) <= 10
