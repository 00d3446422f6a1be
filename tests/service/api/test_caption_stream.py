"""Captions over the WebSocket: an image in, words out."""

import base64
import json

import numpy as np
import pytest

from tests.service.tiny_captioner import text_of


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def stream(connect):
    return connect(model="scenes")


def _caption(stream, file: bytes):
    stream.socket.send(file)
    return stream.rest()


def _start(stream, file: bytes | None = None, **fields):
    stream.send(type="start", **({} if file is None else {"image": _b64(file)}), **fields)


def test_binary_frame_is_captioned_greedily(stream, captioner, picture):
    lengths = set()
    for seed in range(12):  # one after another, on one socket
        file = picture(seed)
        accepted, *tokens, finished = _caption(stream, file)
        assert accepted.pop("request_id")
        assert accepted == {
            "type": "accepted", "model": "scenes", "version": 1, "prompt_tokens": 0, "cached_tokens": 0,
            "unknown_tokens": 0,
        }  # fmt: skip
        expected, _, _ = captioner.greedy(file)
        assert [token["token"] for token in tokens] == expected  # the end is none of them
        assert [token["index"] for token in tokens] == list(range(len(expected)))
        assert all(set(token) == {"type", "index", "token", "text", "logprob"} for token in tokens)
        assert "".join(token["text"] for token in tokens) == text_of(expected)
        assert finished == {
            "type": "finished",
            "reason": "length" if len(expected) == 20 else "stop",
            "text": text_of(expected),
            "usage": {"prompt_tokens": 0, "completion_tokens": len(expected), "total_tokens": len(expected)},
        }
        lengths.add(len(expected))
    assert len(lengths) > 3


def test_start_may_bring_the_image(stream, picture):
    expected = _caption(stream, picture(3))
    for image in (_b64(picture(3)), f"data:image/png;base64,{_b64(picture(3))}"):
        stream.send(type="start", image=image)
        assert stream.rest()[1:] == expected[1:]


def test_start_without_an_image_is_for_the_next_one_only(stream, caption, picture):
    file = picture(3)
    greedy = _caption(stream, file)
    _start(stream, sampling={"seed": 1})
    _start(stream, sampling={"temperature": 1, "seed": 8, "max_tokens": 5}, attention=True)  # the later one counts
    sampled = _caption(stream, file)
    assert sampled[-1]["text"] == caption(file, temperature=1, seed=8, max_tokens=5)[0]["text"]
    assert all("attention" in token for token in sampled[1:-1])
    assert _caption(stream, file)[1:] == greedy[1:]


def test_start_with_an_image_leaves_the_next_one_alone(stream, picture):
    file = picture(3)
    greedy = _caption(stream, file)
    _start(stream, sampling={"max_tokens": 2})
    _start(stream, file)
    assert stream.rest()[1:] == greedy[1:]
    assert len(_caption(stream, file)) <= 4


def test_attention_comes_with_each_token(stream, captioner, picture):
    file = picture(4)
    _start(stream, file, attention=True)
    _, *tokens, _ = stream.rest()
    maps = captioner.greedy(file)[2]
    assert len(tokens) == len(maps) > 0
    for token, looked in zip(tokens, maps, strict=True):
        assert np.array(token["attention"]) == pytest.approx(looked, abs=1e-4)


def test_caption_is_cancelled(connect, picture, ended):
    stream = connect(model="endless")
    for _ in range(2):
        stream.socket.send(picture(0))
        head = [stream.receive() for _ in range(4)]
        stream.send(type="cancel")
        events = [*head, *stream.rest()]
        assert events[-1]["reason"] == "cancelled"
        assert events[-1]["text"] == "".join(event["text"] for event in events[1:-1])
        assert events[-1]["usage"]["completion_tokens"] == len(events) - 2 < 60_000
    ended(cancelled=2)


def test_cancel_may_come_before_the_image_is_decoded(connect, picture):
    stream = connect(model="endless")
    stream.socket.send(picture(0, size=(3_000, 2_000)))
    stream.send(type="cancel")
    assert next(event["type"] for event in stream.rest()) == "accepted"


def test_image_larger_than_other_messages_is_taken(connect, picture, captioner, server):
    noise = picture(0) + b"\0" * (server.context.settings.max_body_bytes + 1)
    stream = connect(model="scenes")
    assert _caption(stream, noise)[-1]["text"] == text_of(captioner.greedy(picture(0))[0])
    assert connect().generate("abc", max_tokens=3)[-1]["reason"] == "length"


def test_message_longer_than_images_may_be_is_refused(run_server, connect, picture):
    with run_server(max_image_body_bytes=10_000) as server:
        stream = connect(server, model="scenes")
        stream.socket.send(picture(0) + b"\0" * 10_000)
        assert stream.close_code() == 1009


def _refused(stream, code: str, close_code: int) -> str:
    error, closed_with = stream.refusal()
    assert error == {"type": "error", "code": code, "message": error["message"], "retryable": False}
    assert closed_with == close_code
    return error["message"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_frame_that_is_no_image_is_refused(stream, content, ended):
    stream.socket.send(content)
    _refused(stream, "invalid_image", 4400)
    ended(invalid_image=1)


@pytest.mark.parametrize("text", ["http://127.0.0.1/a.png", "data:text/plain,a", "not base64", ""])
def test_start_whose_image_is_none_is_refused(stream, text):
    stream.send(type="start", image=text)
    _refused(stream, "invalid_image", 4400)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "feed", "image": "a"}, {"type": "start", "prompt": "a"}, {"type": "start", "session": "ada"},
        {"type": "start", "state": "a"}, {"type": "start", "return_state": True}, {"type": "start", "image": 5},
        {"type": "start", "sampling": {"beam_width": 3}}, {"type": "start", "sampling": {"stop": ["a"]}},
        {"type": "start", "sampling": {"temperature": -1}}, {"type": "start", "beam_width": 3}, {},
    ],
    ids=str,
)  # fmt: skip
def test_field_is_refused(stream, frame):
    stream.socket.send(json.dumps(frame))
    _refused(stream, "invalid_request", 4422)


@pytest.mark.parametrize("sampling", [{"max_tokens": 21}, {"top_k": 14}])
def test_value_that_the_model_does_not_allow_is_refused(stream, picture, sampling):
    _start(stream, sampling=sampling)
    stream.socket.send(picture(0))
    assert "sampling" in _refused(stream, "invalid_request", 4422)


@pytest.mark.parametrize("frame", ["{", "", "nul"])
def test_text_that_is_not_json_is_refused(stream, frame):
    stream.socket.send(frame)
    _refused(stream, "malformed_json", 4400)


def test_frames_out_of_order_are_refused(connect, picture):
    for first, then in [(None, {"type": "cancel"}), ({"type": "start"}, {"type": "cancel"})]:
        stream = connect(model="scenes")
        if first:
            stream.send(**first)
        stream.send(**then)
        _refused(stream, "out_of_order", 4409)
    for second in (picture(1), json.dumps({"type": "start"}), json.dumps({"type": "start", "image": "a"})):
        stream = connect(model="endless")
        stream.socket.send(picture(0))
        assert stream.receive()["type"] == "accepted"
        stream.socket.send(second)
        assert "while a generation runs" in _refused(stream, "out_of_order", 4409)


def test_attention_of_a_model_without_it_is_refused(connect, picture):
    stream = connect(model="blind")
    assert _caption(stream, picture(0))[-1]["type"] == "finished"
    _start(stream, picture(0), attention=True)
    _refused(stream, "no_attention", 4409)


def test_other_models_take_no_images(connect, picture):
    stream = connect()
    stream.socket.send(picture(0))
    _refused(stream, "unsupported_frame", 1003)
    tutor = connect(model="tutor")
    tutor.socket.send(picture(0))
    _refused(tutor, "unsupported_frame", 1003)
