"""Encoders of whole inputs of any length: together where each gives what it gives alone, bit for bit."""

import asyncio

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from carousel.models.bundle import open_bundle
from carousel.models.errors import BundleError
from carousel.models.graph import TensorSpec
from carousel.service.engine.encoder.together import Ragged
from carousel.service.engine.parameters import TensorParameters
from carousel.service.engine.port import Request
from carousel.service.engine.probe import find_together
from carousel.service.engine.session import RunnerBroken
from carousel.service.served.opening import Place, open_parts
from tests.port_models import FLOAT, INT32, graph, node, publish_vitals

ENCODER_IN = {"source": (FLOAT, ["time", 3]), "tone": (FLOAT, [2]), "size": (INT32, [])}
LENGTHS = [1, 9, 3, 3, 30, 2, 9, 17, 5, 1, 4, 9]


def encoder_graph(*, masked=True):
    """h = the last state of an LSTM over `source` of 4 units, less what is padded, and tone beside it. [batch, 6]"""
    random = np.random.default_rng(0)
    weights = {
        "W": random.standard_normal((1, 16, 3)).astype(np.float32),
        "R": random.standard_normal((1, 16, 4)).astype(np.float32),
        "zero": np.array([0]),
    }
    lstm = helper.make_node("LSTM", ["steps", "W", "R", "", "size" if masked else ""], ["", "last"], hidden_size=4)
    nodes = [
        node("Transpose", "source", "steps", perm=[1, 0, 2]),
        lstm,
        node("Squeeze", "last zero", "row"),
        node("Concat", "row tone", "h", axis=1),
    ]
    if not masked:  # a graph that is told the lengths and does not care
        nodes.insert(0, node("Cast", "size", "told", to=TensorProto.FLOAT))
    return graph(nodes, ENCODER_IN, {"h": (FLOAT, [6])}, weights)


STEP = graph(
    [node("Tanh", "h", "h1"), node("Add", "h h", "y")],
    {"h": (FLOAT, [6])},
    {"y": (FLOAT, [6]), "h1": (FLOAT, [6])},
    {},
)
MANIFEST = {
    "format": 2,
    "task": "echo",
    "encoder": {"graph": "encoder.onnx", "inputs": ["source", "tone"], "lengths": "size", "gives": ["h"]},
    "step": {"inputs": [], "outputs": ["y"], "states": [{"in": "h", "out": "h1", "initial": "encoder"}]},
    "head": {"kind": "tensors", "from": ["y"]},
}
SPECS = [TensorSpec("source", "float32", (None, None, 3)), TensorSpec("tone", "float32", (None, 2))]
SIZE = TensorSpec("size", "int32", (None,))


def inputs_of(seed, length):
    random = np.random.default_rng(seed)
    return {"source": random.standard_normal((length, 3)), "tone": random.standard_normal(2)}


def alone(content, inputs, length):
    fed = {name: array[None].astype(np.float32) for name, array in inputs.items()}
    session = onnxruntime.InferenceSession(content)
    return session.run(["h"], {**fed, "size": np.array([length], np.int32)})[0][0]


def open_echo(tmp_path, content):
    path = publish_vitals(tmp_path, MANIFEST, {"step.onnx": STEP, "encoder.onnx": content})
    reports = []
    return open_parts(open_bundle(path), Place(), 1, 4, 1 << 30, reports.append), reports


@pytest.mark.parametrize(("masked", "calls_are_shared_by"), [(True, "any"), (False, "one length")])
async def test_inputs_of_any_length_give_what_each_gives_alone(tmp_path, masked, calls_are_shared_by):
    content = encoder_graph(masked=masked)
    opened, reports = open_echo(tmp_path, content)
    encoder, together = opened.encoder, opened.encoder.together
    assert opened.serving.encoder == "together"
    assert together._padded == (calls_are_shared_by == "any")
    encoder.start()
    try:
        wholes = [together.take(inputs_of(seed, length)) for seed, length in enumerate(LENGTHS)]
        made = await asyncio.gather(*(encoder.encode(lambda whole=whole: whole) for whole in wholes))
    finally:
        await encoder.close()
    for seed, (length, encoding) in enumerate(zip(LENGTHS, made, strict=True)):
        assert encoding.states["h"].tobytes() == alone(content, inputs_of(seed, length), length).tobytes()
    assert sum(report.images for report in reports) == len(LENGTHS)
    core = opened.core
    core.add(0, Request(np.arange(3), TensorParameters(("y",)), snapshot=made[4].snapshot))
    ends = []
    while not core.idle:
        ends += core.step().finished
    h = np.tanh(np.tanh(made[4].states["h"].astype(np.float64)))
    np.testing.assert_allclose(ends[0][1].result.outputs["y"][0], 2 * h, rtol=1e-5)


def test_batch_is_filled_up_with_zeros_and_told_its_lengths():
    together = Ragged(SPECS, SIZE, padded=True)
    wholes = [together.take(inputs_of(seed, length)) for seed, length in enumerate((2, 4))]
    batch = together.batch(wholes)
    assert batch["source"].shape == (2, 4, 3)
    assert not batch["source"][0, 2:].any()
    assert (batch["size"].dtype, batch["size"].tolist()) == (np.int32, [2, 4])
    assert batch["tone"].shape == (2, 2)
    assert together.key(wholes[0]) == together.key(wholes[1])
    apart = Ragged(SPECS, SIZE)
    assert apart.key(wholes[0]) != apart.key(wholes[1])


def test_graph_that_mixes_inputs_is_given_one_a_call():
    def mixing(fed):
        return {"h": fed["tone"] - fed["tone"].mean(axis=0)}

    together, reason = find_together(mixing, SPECS, SIZE)
    assert "differs from the same row alone" in reason
    assert not together._padded


def test_graph_that_fails_on_zeros_is_refused():
    def failing(fed):
        raise ValueError("no such kernel")

    with pytest.raises(RunnerBroken, match="no such kernel"):
        find_together(failing, SPECS, SIZE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": None}, "input 'source' is missing; inputs are source, tone"),
        ({"mood": 1}, "there is no input 'mood'; inputs are source, tone"),
        ({"source": np.zeros((0, 3))}, "input 'source' has 0 steps; allowed are 1 or more"),
        (
            {"source": np.zeros((4, 2))},
            r"input 'source' is \[4, 2\]; allowed is a row of source float32\[batch, \?, 3\]",
        ),
        ({"tone": np.zeros(3)}, r"input 'tone' is \[3\]"),
        ({"tone": np.full(2, np.inf)}, "not finite in float32"),
        ({"tone": np.array(["a", "b"])}, "allowed is float32"),
    ],
)
def test_what_is_no_input_is_refused(change, sentence):
    inputs = {name: array for name, array in {**inputs_of(0, 4), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=sentence):
        Ragged(SPECS, SIZE).take(inputs)


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [
        (
            {"size": (FLOAT, [])},
            r"input size float32\[batch\] is lengths; allowed are int32\[batch\] or int64",
        ),
        ({"size": (INT32, [1])}, "is lengths"),
        ({"source": (FLOAT, ["time", "width"])}, "has a free axis behind that of time"),
    ],
)
def test_encoder_of_another_form_is_refused(tmp_path, ports, sentence):
    content = graph([node("Identity", "tone", "h")], {**ENCODER_IN, **ports}, {"h": (FLOAT, [6])}, {})
    with pytest.raises(BundleError, match=sentence):
        publish_vitals(tmp_path, MANIFEST, {"step.onnx": STEP, "encoder.onnx": content})
