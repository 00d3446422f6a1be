"""Frames written past ASGI, read by the websockets library."""

from __future__ import annotations

import pytest
from websockets.protocol import CLIENT, Protocol

from service.server import StreamProtocol


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
