"""The peers of frames answer as the network does in torch, the client sees what they answer, and the service says the
same."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from carousel.benchmarks.frame_stream import KEPT_ANSWERS, KEPT_STREAMS, Frames
from carousel.benchmarks.frame_stream import run as run_streams
from carousel.benchmarks.frames import largest_difference, main
from carousel.benchmarks.load import LoadFailed, Target, Window
from carousel.benchmarks.naive_frames import create_app
from carousel.benchmarks.networks import (
    CHANNELS,
    LAYERS,
    READINGS,
    UNITS,
    ByHand,
    Network,
    export_sensors,
    sensors,
    sensors_model,
)

WINDOW = Window(0.5, 0.1)
FRAMES = Frames(sensors("sensors.onnx"), 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return export_sensors(tmp_path_factory.mktemp("networks") / "sensors.onnx")


def in_torch(frames, stream, count):
    """The oracle: all frames of a stream in one call of the network in torch. [frames, steps, READINGS]"""
    x = np.frombuffer(b"".join(frames.rows(stream, number) for number in range(count)), "<f4")
    state = torch.zeros(LAYERS, 1, UNITS)
    with torch.inference_mode():
        scores, _, _ = sensors_model()(torch.tensor(x.reshape(1, -1, CHANNELS)), state, state)
    return scores.numpy().reshape(count, frames.steps, READINGS)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_peer_answers_each_client_as_torch_does(network, steps, shared):
    frames = Frames(network, steps)
    with TestClient(create_app(network, shared=shared)) as client:
        path = "/v1/models/sensors/stream"
        with client.websocket_connect(path) as first, client.websocket_connect(path) as second:
            for stream, socket in enumerate((first, second)):
                socket.send_text("{}")
                assert socket.receive_json() == {"type": "accepted"}
                answers = []
                for number in range(20):
                    socket.send_bytes(frames.rows(stream, number))
                    answers.append(np.frombuffer(socket.receive_bytes(), "<f4").reshape(steps, READINGS))
                assert np.array(answers) == pytest.approx(in_torch(frames, stream, 20), abs=1e-5)


def test_by_hand_carries_the_end_of_a_frame_and_what_is_fixed():
    class Session:
        def run(self, outputs, fed):
            assert outputs == ["y", "s_next"]
            assert fed["rate"] == 16_000
            total = np.array([[fed["x"].sum() + fed["s"]]], np.float32)
            return total, np.float32(fed["s"] + 100)

    network = Network("n", "", "x", (1, 3), "y", {"s": ("s_next", ())}, carry=2, fixed={"rate": 16_000})
    client = ByHand(network, Session())
    answers = [np.frombuffer(client.answer(np.array(x, "<f4").tobytes()), "<f4") for x in ([1, 2, 3], [4, 5, 6])]
    assert np.array(answers).ravel().tolist() == [6, 15 + 5 + 100]


class Echo:
    """A WebSocket server (of the websockets library) that sends each frame back, or does as its script says."""

    def __init__(self, *, behind=0, after=None):
        self.behind, self.after = behind, after  # how many frames of a stream are unanswered; what ends its first
        self.frames = []

    async def __call__(self, socket):
        assert json.loads(await socket.recv()) == {"type": "start", "raw": True, "binary": True}
        await socket.send('{"type": "accepted"}')
        frames = []
        self.frames.append(frames)
        with suppress(ConnectionClosed):
            while True:
                frames.append(await socket.recv())
                if self.after is not None:
                    await self.after(socket)
                elif len(frames) > self.behind:
                    await socket.send(frames[-1 - self.behind])


async def against(server, streams, period=None):
    async with serve(server, "127.0.0.1", 0) as listening:
        target = Target(listening.sockets[0].getsockname()[1], "m")
        return await run_streams(target, FRAMES, streams, WINDOW, period)


async def test_closed_loop_sends_each_stream_its_frames_and_keeps_what_comes_back():
    server = Echo()
    result, kept = await against(server, 4)
    assert result.tokens == result.first_token.count > 0
    assert 0 < result.first_token.p50_seconds <= result.first_token.p99_seconds < WINDOW.total_seconds
    assert len(kept) == KEPT_STREAMS
    for stream, answers in enumerate(kept):
        assert 0 < len(answers) <= KEPT_ANSWERS
        assert answers == [FRAMES.rows(stream, number) for number in range(len(answers))]
    sent = {frames[0]: frames for frames in server.frames}
    for stream in range(4):
        frames = sent[FRAMES.rows(stream, 0)]
        assert frames == [FRAMES.rows(stream, number) for number in range(len(frames))]


async def test_closed_loop_has_one_frame_of_a_stream_in_flight():
    server = Echo(behind=1)
    result, _ = await against(server, 2)
    assert result.tokens == 0
    assert [len(frames) for frames in server.frames] == [1, 1]


async def test_pace_sends_frames_that_are_due_whether_or_not_earlier_ones_are_answered():
    server = Echo(behind=3)
    result, _ = await against(server, 5, period=0.02)
    due = WINDOW.total_seconds / 0.02
    assert all(due - 2 <= len(frames) <= due for frames in server.frames)
    assert result.first_token.p50_seconds >= 0.055  # each is answered at the third frame after it, counted when due


@pytest.mark.parametrize(
    ("after", "code"),
    [
        (lambda socket: socket.send('{"type": "error", "code": "step_failed", "retryable": false}'), "step_failed"),
        (lambda socket: socket.close(), "connection_lost"),
    ],
)
async def test_a_stream_that_the_server_ends_fails_the_run(after, code):
    with pytest.raises(LoadFailed, match=f"a stream failed with {code}"):
        await against(Echo(after=after), 2)


def test_command_measures_all_sides_and_finds_their_answers_to_be_the_files_own(tmp_path, capsys):
    output = tmp_path / "frames.json"
    shape = ["--streams", "2", "--seconds", "0.4", "--warmup", "0.1", "--rounds", "1", "--real-time", "16"]
    assert main([*shape, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    sides = {"carousel", "a session each", "one session"}
    assert {(run["side"], run["steps"]) for run in content["frames"]} == {(s, n) for s in sides for n in (1, 8)}
    for run in content["frames"]:
        assert run["result"]["tokens"] > 0
        assert run["difference"] == 0
        assert run["processor_seconds"] > 0
        assert run["busy_bytes"] > run["rest_bytes"] > 10e6  # no Python process is smaller
    rates = {(run["side"], run["steps"]): run["result"]["tokens"] / 0.4 for run in content["frames"]}
    for run in content["paced"]:
        assert run["hertz"] == pytest.approx(0.7 * rates[run["side"], run["steps"]] / 2)
    assert {run["side"] for run in content["real_time"]} == sides
    told = capsys.readouterr().out
    assert "| sensors x8 |" in told
    assert "carousel holds" in told


def test_largest_difference_is_that_of_any_answer(network):
    client = ByHand(network, network.session())
    own = [client.answer(FRAMES.rows(0, number)) for number in range(5)]
    off = (np.frombuffer(own[3], "<f4") + np.float32([0, 0.25, 0, 0])).tobytes()
    assert largest_difference(network, FRAMES, [own]) == 0
    assert largest_difference(network, FRAMES, [[*own[:3], off, own[4]]]) == pytest.approx(0.25)
    assert largest_difference(network, FRAMES, [own, own]) > 0  # another stream's
    assert math.isnan(largest_difference(network, FRAMES, [[own[0][:-4]]]))
    assert math.isnan(largest_difference(network, FRAMES, [[], []]))


def test_command_says_in_one_sentence_what_it_cannot_measure(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "nothing.onnx")]) == 1
    (told,) = capsys.readouterr().err.splitlines()[-1:]
    assert told.startswith("benchmarks: ")
    assert "nothing.onnx" in told
