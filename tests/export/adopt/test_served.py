"""An adopted network in the engine: many streams together are what the file says of each alone."""

import numpy as np
import onnx
import pytest

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from carousel.models.bundle import open_bundle
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import TensorParameters
from carousel.service.engine.port import Request
from carousel.service.served.opening import open_core
from carousel.service.served.ports import step_ports
from tests.export.adopt.strangers import FEATURES, sequence_network

STREAMS, STEPS = 9, 23


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
