"""An adopted network in the engine: many streams together are what the file says of each alone."""

from itertools import pairwise

import numpy as np
import onnx
import pytest

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from carousel.models.bundle import open_bundle
from carousel.service.engine.fed import Fed
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.live import IN_A_CALL
from carousel.service.engine.parameters import LiveParameters, TensorParameters
from carousel.service.engine.port import Request
from carousel.service.served.opening import open_core
from carousel.service.served.ports import step_ports
from tests.export.adopt.strangers import FEATURES, sequence_network

STREAMS, STEPS = 9, 23
NO_IDS = np.zeros(0, np.int64)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("states", [True, False])
def test_streams_together_are_the_file_alone(operator, states, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(sequence_network(operator, states=states))
    assert main([str(path), "--repository", str(tmp_path), "--name", "net", "--time", "x=1"]) == 0
    bundle = open_bundle(tmp_path / "net" / "1")
    core = open_core(bundle, 1, max_rows=4)  # fewer rows than streams: some join later
    x = np.random.default_rng(1).standard_normal((STREAMS, STEPS, FEATURES)).astype(np.float32)
    for stream in range(STREAMS):
        prompt, inputs = fed_steps(step_ports(bundle).inputs, {"x": x[stream, : STEPS - stream]})
        core.add(stream, Request(prompt, TensorParameters(("scores",), each=True), inputs=inputs))
    ended = {}
    while not core.idle:
        ended |= dict(core.step().finished)
    file = Trial(onnx.load_model_from_string(path.read_bytes()))
    zeros = {name: np.zeros((1, 1, 7), np.float32) for name in ("h0", "c0")}
    for stream in range(STREAMS):
        expected = file({"x": x[stream : stream + 1, : STEPS - stream], **zeros})["scores"][0]
        np.testing.assert_array_equal(ended[stream].result.outputs["scores"], expected)


@pytest.fixture(params=["LSTM", "GRU"])
def adopted(request, tmp_path):
    """A bundle of a network with a free axis of time, and what the file says of a sequence."""
    path = tmp_path / "net.onnx"
    path.write_bytes(sequence_network(request.param, states=False))
    assert main([str(path), "--repository", str(tmp_path), "--name", "net", "--time", "x=1"]) == 0
    file = Trial(onnx.load_model_from_string(path.read_bytes()))
    return open_bundle(tmp_path / "net" / "1"), lambda x: file({"x": x[None]})["scores"][0]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("each", [True, False])
def test_frames_of_several_steps_are_one_call(adopted, each, fails, monkeypatch):
    """Of all who have as many, and steps one by one where the call fails; bit for bit the file's, whatever the cut."""
    bundle, truth = adopted
    assert bundle.manifest.prefill == ("prefill.onnx",)
    core = open_core(bundle, 1, max_rows=4)
    calls, steps = [], core.prefill.steps

    def counted(fed, states):
        calls.append(next(iter(fed.values())).shape[:2])
        if fails:
            raise ValueError("not now")
        return steps(fed, states)

    monkeypatch.setattr(core.prefill, "steps", counted)
    x = np.random.default_rng(4).standard_normal((3, IN_A_CALL + 40, FEATURES)).astype(np.float32)
    told = {stream: [] for stream in range(3)}
    for stream in told:
        core.add(stream, Request(NO_IDS, LiveParameters(("scores",), each)))
    cuts = [0, 5, 6, 6 + IN_A_CALL + 9, x.shape[1]]
    for start, stop in pairwise(cuts):
        for stream in told:
            core.feed(stream, Fed(stop - start, {"x": x[stream, start:stop]}))
        while not core.idle:
            for id, answer in core.step().answers:
                told[id].append(answer.outputs[0])
    assert calls[:3] == [(3, 5), (3, IN_A_CALL), (3, 9)]
    for stream, rows in told.items():
        expected = truth(x[stream])
        wanted = [expected[start:stop] if each else expected[stop - 1 : stop] for start, stop in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(wanted))


def test_long_histories_are_taken_by_the_graph_of_many_steps(adopted):
    bundle, truth = adopted
    core = open_core(bundle, 1, max_rows=4)
    x = np.random.default_rng(5).standard_normal((90, FEATURES)).astype(np.float32)
    prompt, inputs = fed_steps(step_ports(bundle).inputs, {"x": x})
    core.add(0, Request(prompt, TensorParameters(("scores",), each=False), inputs=inputs))
    ended, steps = {}, 0
    while not core.idle:
        output = core.step()
        ended |= dict(output.finished)
        steps += output.report is not None
    assert steps < 10
    np.testing.assert_array_equal(ended[0].result.outputs["scores"], truth(x)[-1:])
