"""How the WebSocket protocol tells frames apart: cut anywhere, mixed with others, they come whole and in order."""

import struct

import numpy as np
import pytest
from websockets.protocol import State

from carousel.service.server.stream_protocol import HELD_BYTES, StreamProtocol

MASK = b"\x01\x02\x03\x04"


def frame(first, payload, masked=True):
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size) if size < 1 << 16 else None
    length = length or b"\x7f" + struct.pack(">Q", size)
    if not masked:
        return bytes([first]) + length + payload
    body = bytes(value ^ MASK[place % 4] for place, value in enumerate(payload))
    return bytes([first]) + bytes([length[0] | 0x80]) + length[1:] + MASK + body


class Library:
    """What is below: it is given bytes."""

    def __init__(self, state=State.OPEN):
        self.state = state


@pytest.fixture
def make(monkeypatch):
    def make(*, taking=True):
        protocol = StreamProtocol.__new__(StreamProtocol)
        protocol.handshake_complete, protocol.handshake_initiated = True, True
        protocol.conn = Library()
        seen = []
        parent = StreamProtocol.__mro__[1]
        monkeypatch.setattr(parent, "data_received", lambda self, data: seen.append(("passed", bytes(data))))
        if taking:
            protocol.take = lambda payload: (seen.append(("taken", payload)), payload[:1] != b"n")[1]
        return protocol, seen

    return make


def joined(seen):
    """With bytes that were passed on one after another in one piece."""
    found = []
    for kind, data in seen:
        if kind == "passed" and found and found[-1][0] == "passed":
            found[-1] = (kind, found[-1][1] + data)
        elif data:
            found.append((kind, data))
    return found


LONG = b"l" * (HELD_BYTES + 5)
SENT = [
    (0x82, b"one"),
    (0x82, b""),
    (0x81, b"text"),
    (0x82, b"t" * 126),
    (0x89, b"ping"),
    (0x82, b"s" * 3000),
    (0x02, b"first part"),
    (0x89, b"between"),
    (0x80, b"last part"),
    (0x82, b"after"),
    (0x82, LONG),
    (0x82, b"no: refused"),
    (0x82, b"end"),
]


@pytest.mark.parametrize("seed", range(8))
def test_frames_are_told_apart_wherever_they_are_cut(make, seed):
    protocol, seen = make()
    data, random = b"".join(frame(*each) for each in SENT), np.random.default_rng(seed)
    largest = (1, 3, 50, 2000, 1 << 15, 1 << 17, len(data), 7)[seed]
    while data:
        cut = int(random.integers(1, largest + 1))
        protocol.data_received(data[:cut])
        data = data[cut:]
    taken = [payload for kind, payload in seen if kind == "taken"]
    assert [payload for payload in taken if payload != LONG] == [
        payload for first, payload in SENT if first == 0x82 and payload != LONG
    ]
    passed = b"".join(payload for kind, payload in seen if kind == "passed")
    others = [(first, payload) for first, payload in SENT if first != 0x82 or payload[:1] == b"n"]
    if LONG not in taken:  # it was not whole when it came
        others.insert(-1, (0x82, LONG))
    assert passed == b"".join(frame(*each) for each in others)


def test_nothing_is_taken_unless_somebody_takes(make):
    protocol, seen = make(taking=False)
    data = b"".join(frame(*each) for each in SENT)
    protocol.data_received(data)
    assert joined(seen) == [("passed", data)]


def test_frame_without_mask_and_all_behind_it_are_the_librarys(make):
    protocol, seen = make()
    data = frame(0x82, b"bad", masked=False) + frame(0x82, b"good")
    protocol.data_received(frame(0x82, b"good") + data)
    protocol.data_received(frame(0x82, b"later"))
    assert joined(seen) == [("taken", b"good"), ("passed", data + frame(0x82, b"later"))]


def test_frame_behind_a_close_is_the_librarys(make):
    protocol, seen = make()
    protocol.conn.state = State.CLOSING
    protocol.data_received(frame(0x82, b"late"))
    assert joined(seen) == [("passed", frame(0x82, b"late"))]


def test_bytes_before_the_handshake_is_answered_are_the_librarys_for_good(make):
    protocol, seen = make()
    protocol.handshake_complete = protocol.handshake_initiated = False
    protocol.data_received(b"GET / HTTP/1.1")
    protocol.handshake_initiated = True
    protocol.data_received(b"\x82")
    protocol.handshake_complete = True
    protocol.data_received(b"\x80")
    assert joined(seen) == [("passed", b"GET / HTTP/1.1\x82\x80")]
