"""What WebSocket clients get wrong: the error is the last event, then the close code, and the next client is served."""

import json

import pytest
from websockets.exceptions import InvalidStatus


@pytest.fixture(autouse=True)
def _next_client_is_served(connect):
    yield
    assert connect().generate("abc", max_tokens=2)[-1]["reason"] == "length"


def _refused(stream, code: str, close_code: int) -> str:
    """The message of an error that must have the one shape, this code and this close code."""
    error, closed_with = stream.refusal()
    assert error == {"type": "error", "code": code, "message": error["message"], "retryable": False}
    assert closed_with == close_code
    assert 0 < len(error["message"]) < 600
    assert "\n" not in error["message"]
    return error["message"]


def test_sampling_field_is_refused(connect, bad_sampling):
    name, value = bad_sampling
    stream = connect()
    stream.socket.send(f'{{"type": "start", "prompt": "abc", "sampling": {{"{name}": {value}}}}}')
    if value == '["\\ud800"]':  # JSON's grammar allows half a surrogate pair, this parser does not
        _refused(stream, "malformed_json", 4400)
    else:
        message = _refused(stream, "invalid_request", 4422)
        assert name in message
        assert "sampling" in message


@pytest.mark.parametrize(
    "frame",
    ["", "{", "nul", "{'type': 'cancel'}", '{"type": "cancel",}', "[" * 100_000, '{"type":' * 100_000,
     '{"type": "start", "prompt": "\\ud800"}', '{"type": "start", "prompt": "\x01"}', "\0"],
    ids=lambda frame: repr(frame[:12]),
)  # fmt: skip
def test_frame_that_is_not_json_is_refused(connect, frame):
    stream = connect()
    stream.socket.send(frame)
    _refused(stream, "malformed_json", 4400)


@pytest.mark.parametrize(
    "frame",
    [
        "[]", "5", "null", '"start"', "{}",
        '{"prompt": "abc"}',
        '{"type": null, "prompt": "abc"}',
        '{"type": 5, "prompt": "abc"}',
        '{"type": "begin", "prompt": "abc"}',
        '{"type": "Start", "prompt": "abc"}',
        '{"type": "' + "x" * 100_000 + '"}',
        '{"type": "start"}',
        '{"type": "start", "prompt": null}',
        '{"type": "start", "prompt": 5}',
        '{"type": "start", "prompt": ["abc"]}',
        '{"type": "start", "prompt": "abc", "tokens": [2]}',
        '{"type": "start", "tokens": "abc"}',
        '{"type": "start", "tokens": [true]}',
        '{"type": "start", "tokens": [2.5]}',
        '{"type": "start", "tokens": [' + ",".join(['"a"'] * 900_000) + "]}",
        '{"type": "start", "prompt": "abc", "sampling": null}',
        '{"type": "start", "prompt": "abc", "sampling": []}',
        '{"type": "start", "prompt": "abc", "max_tokens": 5}',
        '{"type": "start", "prompt": "abc", "model": "tiny"}',
        '{"type": "start", "prompt": "abc", "' + "x" * 100_000 + '": 5}',
        '{"type": "start", ' + ",".join(f'"{number}": 1' for number in range(250_000)) + "}",
        '{"type": "cancel", "reason": "none"}',
    ],
    ids=lambda frame: frame[:60],
)  # fmt: skip
def test_frame_is_refused(connect, frame):
    stream = connect()
    stream.socket.send(frame)
    _refused(stream, "invalid_request", 4422)


@pytest.mark.parametrize(
    ("prompt", "code", "close_code"),
    [
        ("", "empty_prompt", 4422),
        ([], "empty_prompt", 4422),
        ("xyz", "unknown_tokens", 4422),
        ("\0", "unknown_tokens", 4422),
        ([13], "token_out_of_range", 4422),
        ([2, -1], "token_out_of_range", 4422),
        ([10**30], "token_out_of_range", 4422),
        ([2] * 262_145, "prompt_too_long", 4413),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("kind", ["start", "feed"])
def test_prompt_is_refused(connect, kind, prompt, code, close_code):
    stream = connect()
    if kind == "feed":
        stream.generate("abc", max_tokens=2)
    stream.start(prompt, kind)
    _refused(stream, code, close_code)


def test_prompts_cancelled_before_they_were_eaten_do_not_pile_up(connect):
    stream = connect()
    stream.start([2] * 262_144)
    stream.send(type="cancel")
    assert stream.rest()[-1]["reason"] == "cancelled"
    stream.start([2] * 262_144, "feed")
    assert "262,144" in _refused(stream, "prompt_too_long", 4413)


@pytest.mark.parametrize("before", [0, 1], ids=["first", "while running"])
@pytest.mark.parametrize("frame", [b"", b"abc", json.dumps({"type": "cancel"}).encode(), b"\xff\xd8\xff" * 10_000])
def test_binary_frame_is_refused(connect, frame, before):
    stream = connect()
    if before:
        stream.start("abc", max_tokens=60_000)
        assert stream.receive()["type"] == "accepted"
    stream.socket.send(frame)
    _refused(stream, "unsupported_frame", 1003)


@pytest.mark.parametrize("frame", [{"type": "feed", "prompt": "abc"}, {"type": "cancel"}], ids=["feed", "cancel"])
def test_frame_before_start_is_refused(connect, frame):
    stream = connect()
    stream.send(**frame)
    assert "before any" in _refused(stream, "out_of_order", 4409)


@pytest.mark.parametrize("kind", ["start", "feed"])
@pytest.mark.parametrize("at_once", [False, True])
def test_frame_while_a_generation_runs_is_refused(connect, kind, at_once):
    stream = connect()
    stream.generate("abc", max_tokens=1)
    stream.start("abc", max_tokens=60_000)
    if not at_once:
        assert [stream.receive()["type"] for _ in range(2)] == ["accepted", "token"]
    stream.start("abc", kind)
    assert "while a generation runs" in _refused(stream, "out_of_order", 4409)


def test_text_frame_that_is_not_utf8_closes_the_socket(connect):
    stream = connect()
    stream.socket.send(b'{"type": "\xff"}', text=True)
    assert stream.close_code() == 1007


@pytest.mark.parametrize("before", [0, 4_000_000], ids=["whole", "in fragments"])
def test_message_longer_than_the_limit_closes_the_socket(raw_client, before):
    connection = raw_client()
    connection.upgrade("/v1/models/tiny/stream")

    def head(first: int, length: int) -> bytes:
        return bytes([first, 0x80 | 127]) + length.to_bytes(8, "big") + bytes(4)  # masked with zeros

    if before:
        connection.socket.sendall(head(0x01, before) + b" " * before)  # text, not the last fragment
    # Refused by its header: the rest is not waited for. (Nor sent here: a reset could overtake the close frame.)
    connection.socket.sendall(head(0x80 if before else 0x81, 4 * 1024 * 1024 + 1 - before))
    received = b""
    while part := connection.socket.recv(1000):
        received += part
    assert received[:1] == b"\x88"
    assert int.from_bytes(received[2:4], "big") == 1009


@pytest.mark.parametrize("name", ["nobody", "%00", "%ff", "%E6%A8%A1", "tiny%20", "%7B%7D", "x" * 5_000])
def test_model_that_is_not_served_is_refused(connect, name):
    _refused(connect(model=name), "unknown_model", 4404)


def test_socket_on_an_unknown_path_is_refused(connect):
    with pytest.raises(InvalidStatus) as caught:
        connect(model="tiny/1")
    assert caught.value.response.status_code == 403


def test_refusals_are_counted_by_their_code(connect, ended):
    for frame in ("{", "{}", '{"type": "cancel"}', '{"type": "start", "prompt": ""}'):
        stream = connect()
        stream.socket.send(frame)
        stream.refusal()
    stream = connect()
    stream.socket.send(b"binary")
    stream.refusal()
    connect(model="nobody").refusal()
    codes = [
        "malformed_json", "invalid_request", "out_of_order", "empty_prompt", "unsupported_frame", "unknown_model"
    ]  # fmt: skip
    ended(**dict.fromkeys(codes, 1))


def test_bad_frames_change_nobodys_tokens(connect, unchanged):
    with unchanged():
        for _ in range(5):
            for frame in (
                "[" * 100_000,
                '{"type": "feed", "prompt": "a"}',
                b"binary",
                '{"type": "start", "tokens": [13]}',
            ):
                stream = connect()
                stream.socket.send(frame)
                stream.refusal()
