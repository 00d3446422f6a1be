"""Raw steps over the WebSocket: a stranger's network against its own file run its own way, and other tasks' models
against `predict`'s oracle."""

import json
import threading

import httpx
import numpy as np
import onnx
import pytest
from websockets.sync.client import connect as open_socket

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import CLASSES, FEATURES, sequence_network
from tests.export.adopt.test_step import speaker_network

STEPS = 200
STREAMS = 24
ROW = [0.0] * FEATURES


@pytest.fixture(scope="module")
def file():
    return sequence_network("LSTM", states=False)


@pytest.fixture(scope="module")
def repository(file, tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for name, content in {"net": file, "speaker": speaker_network()}.items():
        path = root / f"{name}.onnx"
        path.write_bytes(content)
        assert main([str(path), "--repository", str(root / "bundles"), "--name", name, "--time", "x=1"]) == 0
    return root / "bundles"


@pytest.fixture(scope="module")
def adopted(run_server, repository):
    with run_server(repository=repository, max_rows=4) as server:
        yield server


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).standard_normal((STREAMS, STEPS, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(file, x):
    return Trial(onnx.load_model_from_string(file))({"x": x})["scores"]


class Raw:
    """A client of one socket."""

    def __init__(self, server, model="net", **start):
        self.opening = open_socket(server.socket_url(model), proxy=None, compression=None, open_timeout=60)
        self.first = start

    def start(self, **start):
        self.send(type="start", raw=True, **start)
        self.accepted = self.receive()

    def send(self, **frame):
        self.socket.send(json.dumps(frame))

    def receive(self):
        told = self.socket.recv(timeout=60)
        return json.loads(told) if isinstance(told, str) else np.frombuffer(told, "<f4").reshape(-1, CLASSES)

    def ask(self, rows):
        """Scores after each row, which are sent as bytes."""
        self.socket.send(rows.astype("<f4").tobytes())
        return self.receive()

    def finish(self):
        self.send(type="finish")
        return self.receive()

    def __enter__(self):
        self.socket = self.opening.__enter__()
        self.start(**self.first)
        return self

    def __exit__(self, *error):
        self.opening.__exit__(*error)


def test_accepted_names_ports_as_the_manifest_does(adopted):
    with Raw(adopted, binary=True) as raw:
        told = raw.accepted
    assert {key: told[key] for key in ("type", "model", "version")} == {
        "type": "accepted",
        "model": "net",
        "version": 1,
    }
    assert told["inputs"] == [{"name": "x", "dtype": "float32", "shape": [FEATURES]}]
    assert told["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [CLASSES]}]
    assert len(told["request_id"]) == 32
    assert told["max_steps"] >= STEPS


def test_many_streams_at_once_are_each_what_the_file_says(adopted, x, truth):
    """More than a step has rows, frames of different lengths, each stream at its own pace."""
    found = {}

    def run(number):
        random = np.random.default_rng(number)
        with Raw(adopted, binary=True) as raw:
            said, at = [], 0
            while at < STEPS - number:
                count = int(random.integers(1, 9))
                said.append(raw.ask(x[number, at : min(at + count, STEPS - number)]))
                at += count
            finished = raw.finish()
        found[number] = np.concatenate(said), finished

    threads = [threading.Thread(target=run, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (said, finished) in found.items():
        np.testing.assert_array_equal(said, truth[number, : STEPS - number])
        assert finished == {"type": "finished", "reason": "stop", "steps": STEPS - number}
    assert len(found) == STREAMS


def test_json_steps_are_what_predict_says(adopted, x, truth):
    with Raw(adopted) as raw:
        for start, end in ((0, 1), (1, 5), (5, 30)):
            raw.send(type="steps", inputs={"x": x[0, start:end].tolist()})
            told = raw.receive()
            assert (told["type"], told["index"]) == ("outputs", start)
            np.testing.assert_array_equal(np.float32(told["outputs"]["scores"]), truth[0, start:end])
    body = {"inputs": {"x": x[0, :30].tolist()}, "each": True}
    answer = httpx.post(f"{adopted.url}/v1/models/net/predict", json=body, trust_env=False).json()
    np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), truth[0, :30])


@pytest.mark.parametrize("binary", [True, False])
def test_without_each_a_frame_is_answered_by_its_last_step(adopted, x, truth, binary):
    with Raw(adopted, binary=binary, each=False) as raw:
        for start, end in ((0, 3), (3, 4), (4, 20)):
            if binary:
                np.testing.assert_array_equal(raw.ask(x[1, start:end]), truth[1, end - 1 : end])
            else:
                raw.send(type="steps", inputs={"x": x[1, start:end].tolist()})
                told = raw.receive()
                assert told["index"] == start
                np.testing.assert_array_equal(np.float32(told["outputs"]["scores"]), truth[1, end - 1])


def test_session_and_state_token_go_on_where_they_were(adopted, x, truth):
    with Raw(adopted, binary=True, session="call", return_state=True) as raw:
        np.testing.assert_array_equal(raw.ask(x[2, :70]), truth[2, :70])
        finished = raw.finish()
        assert finished["session"] == "call"
        raw.start(binary=True, session="call")  # another stream on the same socket
        np.testing.assert_array_equal(raw.ask(x[2, 70:140]), truth[2, 70:140])
        assert raw.finish()["steps"] == 70
    body = {"inputs": {"x": x[2, 140:].tolist()}, "session": "call"}
    answer = httpx.post(f"{adopted.url}/v1/models/net/predict", json=body, trust_env=False).json()
    np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), truth[2, -1])
    for _ in range(2):  # a token may be used again
        with Raw(adopted, binary=True, state=finished["state"]) as raw:
            np.testing.assert_array_equal(raw.ask(x[2, 70:]), truth[2, 70:])


def test_stream_that_is_cancelled_keeps_what_was_answered(adopted, x, truth):
    with Raw(adopted, binary=True, session="cut") as raw:
        raw.ask(x[3, :9])
        raw.send(type="cancel")
        assert raw.receive() == {"type": "finished", "reason": "cancelled", "steps": 9, "session": "cut"}
    with Raw(adopted, binary=True, session="cut") as raw:
        np.testing.assert_array_equal(raw.ask(x[3, 9:20]), truth[3, 9:20])


def test_stream_goes_on_at_another_server_where_sessions_are_in_redis(run_server, repository, start_redis, x, truth):
    """From the last answer, whether the stream before was finished or cancelled."""
    url = start_redis().url
    with (
        run_server(repository=repository, redis_url=url) as one,
        run_server(repository=repository, redis_url=url) as two,
    ):
        told = []
        for at, server in enumerate((one, two, one, two)):
            with Raw(server, binary=True, session="moved") as raw:
                told.append(raw.ask(x[0, 3 * at : 3 * at + 3]))
                raw.send(type=("finish", "cancel")[at // 2])
                assert raw.receive()["session"] == "moved"
        np.testing.assert_array_equal(np.concatenate(told), truth[0, :12])


def test_socket_that_drops_leaves_its_session_as_it_was(adopted, x, truth, eventually):
    with Raw(adopted, binary=True, session="dropped") as raw:
        raw.ask(x[4, :5])
        raw.finish()
        raw.start(binary=True, session="dropped")
        raw.ask(x[4, 5:12])
        with Raw(adopted, binary=True) as other:
            raw.socket.socket.close()
            np.testing.assert_array_equal(other.ask(x[5]), truth[5])
    engine = adopted.context.repository.models["net"].engine
    eventually(lambda: engine._live == 0)
    with Raw(adopted, binary=True, session="dropped") as raw:
        np.testing.assert_array_equal(raw.ask(x[4, 5:20]), truth[4, 5:20])


def test_context_is_read_by_every_step(adopted, x):
    file = Trial(onnx.load_model_from_string(speaker_network()))
    who = np.random.default_rng(4).standard_normal(FEATURES).astype(np.float32)
    with Raw(adopted, "speaker", context={"context.speaker": who.tolist()}) as raw:
        raw.send(type="steps", inputs={"x": x[0, :9].tolist()})
        told = raw.receive()["outputs"]["told"]
    expected = file({"x": x[:1, :9], "speaker": who[None], "h": np.zeros((1, 1, 7), np.float32)})["told"][:, 0]
    np.testing.assert_array_equal(np.float32(told), expected)


BYTES = np.zeros(FEATURES, "<f4").tobytes()
BAD = np.array([np.nan, 0, 0, 0, 0], "<f4").tobytes()
BAD_FRAMES = [
    (True, BYTES[:-1], "invalid_request", "19 bytes; allowed are whole rows of x"),
    (True, b"", "invalid_request", "0 bytes"),
    (True, BAD, "invalid_request", "x: holds a number that is not finite"),
    (True, BYTES + BAD, "invalid_request", "not finite"),
    (True, {"type": "steps", "inputs": {"x": [ROW]}}, "unsupported_frame", "start asked for binary"),
    (True, "{", "malformed_json", "not JSON"),
    (False, BYTES, "unsupported_frame", "send steps as JSON"),
    (False, {"type": "steps"}, "invalid_request", "input 'x' is missing; inputs are x"),
    (False, {"type": "steps", "inputs": {"y": [ROW]}}, "invalid_request", "there is no input 'y'"),
    (False, {"type": "steps", "inputs": {"x": [ROW], "y": [ROW]}}, "invalid_request", "there is no input 'y'"),
    (False, {"type": "steps", "inputs": {"x": []}}, "invalid_request", "inputs: "),
    (False, {"type": "steps", "inputs": {"x": ROW}}, "invalid_request", "allowed is [5]"),
    (False, {"type": "steps", "inputs": {"x": [[ROW]]}}, "invalid_request", "allowed is [5]"),
    (False, {"type": "steps", "inputs": {"x": [["a"] * FEATURES]}}, "invalid_request", "what is no number"),
    (False, {"type": "steps", "inputs": {"x": [[1e39, *ROW[1:]]]}}, "invalid_request", "not finite in float32"),
    (False, '{"type": "steps", "inputs": {"x": [[NaN, 0, 0, 0, 0]]}}', "invalid_request", "not finite"),
    (False, {"type": "steps", "inputs": {"x": [ROW]}, "steps": 1}, "invalid_request", "steps: the model has inputs"),
    (False, {"type": "steps", "inputs": {"x": [ROW]}, "colour": 1}, "invalid_request", "colour"),
    (False, {"type": "start", "raw": True}, "out_of_order", "start came while a raw stream runs"),
    (False, {"type": "feed"}, "invalid_request", "type must be one of 'steps', 'finish', 'cancel'"),
]


@pytest.mark.parametrize(("binary", "frame", "code", "message"), BAD_FRAMES)
def test_bad_frame_is_refused_in_its_place_and_the_stream_goes_on(adopted, x, truth, binary, frame, code, message):
    def steps(raw, start, end):
        if binary:
            raw.socket.send(x[6, start:end].tobytes())
        else:
            raw.send(type="steps", inputs={"x": x[6, start:end].tolist()})

    def told(raw):
        return raw.receive() if binary else np.float32(raw.receive()["outputs"]["scores"])

    with Raw(adopted, binary=binary) as raw:
        steps(raw, 0, 7)
        raw.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)
        steps(raw, 7, 9)
        np.testing.assert_array_equal(told(raw), truth[6, :7])
        error = raw.receive()
        assert error.keys() == {"type", "code", "message", "retryable", "index"}
        assert (error["type"], error["code"], error["index"], error["retryable"]) == ("error", code, 7, False)
        assert message in error["message"]
        np.testing.assert_array_equal(told(raw), truth[6, 7:9])
        assert raw.finish()["steps"] == 9


@pytest.mark.parametrize("binary", [True, False])
def test_frame_of_too_many_steps_is_refused(adopted, binary):
    with Raw(adopted, binary=binary) as raw:
        many = raw.accepted["max_steps"] + 1
        if binary:
            raw.socket.close()
        else:
            raw.send(type="steps", inputs={"x": [0] * many})
            error = raw.receive()
            assert (error["code"], error["index"]) == ("prompt_too_long", 0)
            assert f"{many:,} steps" in error["message"]


STARTS = [
    ({"binary": 1}, "invalid_request", "binary"),
    ({"outputs": ["logits"]}, "invalid_request", "there is no output 'logits'; outputs are scores"),
    ({"outputs": []}, "invalid_request", "outputs"),
    ({"context": {"who": 1}}, "invalid_request", "context: there is no port 'who'"),
    ({"colour": "red"}, "invalid_request", "colour"),
    ({"session": "a", "state": "b"}, "invalid_request", "either session or state"),
    ({"state": "b"}, "invalid_state_token", ""),
    ({"session": ""}, "invalid_session_id", ""),
]


@pytest.mark.parametrize(("start", "code", "message"), STARTS)
def test_bad_start_ends_the_socket(adopted, start, code, message):
    with Raw(adopted, **start) as raw:
        assert (raw.accepted["type"], raw.accepted["code"]) == ("error", code)
        assert message in raw.accepted["message"]
        assert "index" not in raw.accepted


@pytest.mark.parametrize("model", ["net", "tiny", "scenes"])
@pytest.mark.parametrize("kind", ["steps", "finish"])
def test_steps_before_start_are_out_of_order(adopted, server, model, kind):
    url = (adopted if model == "net" else server).socket_url(model)
    with open_socket(url, proxy=None, compression=None) as socket:
        socket.send(json.dumps({"type": kind}))
        error = json.loads(socket.recv(timeout=60))
    assert (error["type"], error["code"]) == ("error", "out_of_order")
    assert "send start with raw first" in error["message"]


def test_start_that_is_not_raw_is_refused_where_nothing_else_streams(adopted):
    with open_socket(adopted.socket_url("net"), proxy=None, compression=None) as socket:
        socket.send(json.dumps({"type": "start", "prompt": "abc"}))
        error = json.loads(socket.recv(timeout=60))
    assert (error["type"], error["code"]) == ("error", "wrong_task")
    assert "raw" in error["message"]


def test_language_model_takes_ids(server, oracle):
    ids = [1, 2, 3, 4, 5, 3, 1]
    expected = oracle.logits(ids).numpy()
    with Raw(server, "tiny") as raw:
        assert raw.accepted["inputs"] == [{"name": "token", "dtype": "int64", "shape": []}]
        for start, end in ((0, 1), (1, 5), (5, 7)):
            raw.send(type="steps", inputs={"token": ids[start:end]})
            told = raw.receive()["outputs"]["logits"]
            np.testing.assert_allclose(told, expected[start:end], atol=1e-4)
        for wrong in (-1, 10_000):
            raw.send(type="steps", inputs={"token": [1, wrong]})
            error = raw.receive()
            assert (error["code"], error["index"]) == ("token_out_of_range", 7)
            assert f"id {wrong} is out of range" in error["message"]
        raw.send(type="steps", inputs={"token": [1.5]})
        assert raw.receive()["code"] == "invalid_request"


def test_raw_stream_and_generations_share_a_session(server, connect):
    """A generation leaves its last token unconsumed: the raw stream consumes it first, and leaves nothing."""
    stream = connect()
    stream.send(type="start", prompt="abc", session="shared", sampling={"seed": 1, "max_tokens": 4})
    first = [event["token"] for event in stream.rest() if event["type"] == "token"]
    with Raw(server, "tiny", session="shared") as raw:
        raw.send(type="steps", inputs={"token": [1, 2]})
        resumed = raw.receive()["outputs"]["logits"]
        raw.finish()
        raw.start()
        prompt = [server.context.repository.models["tiny"].bundle.codecs["text"].encode(c)[0] for c in "abc"]
        raw.send(type="steps", inputs={"token": [*prompt, *first, 1, 2]})
        assert raw.receive()["outputs"]["logits"][-2:] == resumed


def test_tracing_model_takes_its_ports(server, trace):
    with Raw(server, "tutor") as raw:
        assert [port["name"] for port in raw.accepted["inputs"]] == ["skill", "correct"]
        raw.send(type="steps", inputs={"skill": [0, 1, 1], "correct": [1, 0, 1]})
        told = raw.receive()["outputs"]["probability"][-1]
        for inputs, said in (
            ({"skill": [0], "correct": [2]}, "answer 2"),
            ({"skill": [99], "correct": [0]}, "skill 99"),
        ):
            raw.send(type="steps", inputs=inputs)
            assert said in raw.receive()["message"]
    attempts = [{"skill": skill, "correct": correct} for skill, correct in ((0, True), (1, False), (1, True))]
    predicted = trace(attempts=attempts)["predictions"]
    np.testing.assert_allclose([each["probability"] for each in predicted], told, atol=1e-8)
    with Raw(server, "tutor", binary=True) as raw:
        assert "binary: is for models with one port of numbers" in raw.accepted["message"]


def test_model_that_begins_with_an_image_asks_for_its_context(server):
    with Raw(server, "scenes") as raw:
        assert (raw.accepted["code"], raw.accepted["type"]) == ("invalid_request", "error")
        assert "context: port" in raw.accepted["message"]
