"""Encoder, context, attention, greedy and beams on onnxruntime and real graphs, against numpy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.service.engine.core import EngineCore
from carousel.service.engine.encoder.encoder import Encoder
from carousel.service.engine.parameters import BeamParameters, FinishReason, SamplingParameters
from carousel.service.engine.port import Request, Told
from carousel.service.engine.runner import HeadPorts, OnnxEncoder, OnnxRunner, StepPorts
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.pool import StateSpec
from carousel.service.engine.threads.async_engine import AsyncEngine

VOCABULARY, SIZE, ROWS, COLUMNS = 13, 5, 2, 3
IMAGE = (3, 4, 7)
BEGIN, END = 1, 2
MAX_TOKENS = 15
RANDOM = np.random.default_rng(0)
EMBEDDING = RANDOM.standard_normal((VOCABULARY, SIZE)).astype(np.float32)
PROJECTION = (3 * RANDOM.standard_normal((SIZE, VOCABULARY))).astype(np.float32)
PROJECTION[:, END] *= 2  # so that some captions end
ENCODER = RANDOM.standard_normal((3 * 4 * 7, SIZE + ROWS * COLUMNS * SIZE)).astype(np.float32)


def graph_of(nodes, inputs, outputs, constants):
    def tensor(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        "tiny",
        [tensor(*given) for given in inputs],
        [tensor(*given) for given in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def step_graph():
    """attention = softmax(memory . h); h' = tanh(h + attention . memory + embedding); logits = h' . projection"""
    node = helper.make_node
    return graph_of(
        [
            node("Unsqueeze", ["state.h", "two"], ["column"]),
            node("MatMul", ["memory.map", "column"], ["scores"]),
            node("Softmax", ["scores"], ["weights"], axis=1),
            node("Reshape", ["weights", "grid"], ["attention"]),
            node("Mul", ["weights", "memory.map"], ["weighed"]),
            node("ReduceSum", ["weighed", "one"], ["context"], keepdims=0),
            node("Gather", ["embedding", "token"], ["word"]),
            node("Sum", ["state.h", "context", "word"], ["total"]),
            node("Tanh", ["total"], ["next_state.h"]),
            node("MatMul", ["next_state.h", "projection"], ["logits"]),
        ],
        [
            ("token", TensorProto.INT64, []),
            ("state.h", TensorProto.FLOAT, [SIZE]),
            ("memory.map", TensorProto.FLOAT, [ROWS * COLUMNS, SIZE]),
        ],
        [
            ("logits", TensorProto.FLOAT, [VOCABULARY]),
            ("next_state.h", TensorProto.FLOAT, [SIZE]),
            ("attention", TensorProto.FLOAT, [ROWS, COLUMNS]),
        ],
        {
            "embedding": EMBEDDING,
            "projection": PROJECTION,
            "one": np.array([1]),
            "two": np.array([2]),
            "grid": np.array([-1, ROWS, COLUMNS]),
        },
    )


@pytest.fixture(scope="module")
def encoder_graph():
    node = helper.make_node
    return graph_of(
        [
            node("Flatten", ["image"], ["flat"]),
            node("MatMul", ["flat", "weights"], ["linear"]),
            node("Split", ["linear", "sizes"], ["state.h", "features"], axis=1),
            node("Reshape", ["features", "shape"], ["memory.map"]),
        ],
        [("image", TensorProto.FLOAT, IMAGE)],
        [("state.h", TensorProto.FLOAT, [SIZE]), ("memory.map", TensorProto.FLOAT, [ROWS * COLUMNS, SIZE])],
        {
            "weights": ENCODER,
            "sizes": np.array([SIZE, ROWS * COLUMNS * SIZE]),
            "shape": np.array([-1, ROWS * COLUMNS, SIZE]),
        },
    )


class Oracle:
    """The same two graphs in numpy, for one image."""

    def __init__(self, image):
        linear = image.reshape(-1) @ ENCODER
        self.h, self.map = linear[:SIZE], linear[SIZE:].reshape(ROWS * COLUMNS, SIZE)

    def steps(self, tokens):
        """(attention, logits) after each of the begin token and `tokens`."""
        h = self.h
        for token in (BEGIN, *tokens):
            scores = self.map @ h
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            h = np.tanh(h + weights @ self.map + EMBEDDING[token])
            yield weights.reshape(ROWS, COLUMNS), (h @ PROJECTION).astype(np.float32)

    def logits(self, tokens):
        *_, (_, logits) = self.steps(tokens)
        return logits

    def maps(self, tokens):
        return [attention for attention, _ in self.steps(tokens)]


@pytest.fixture
def images():
    return (0.1 * np.random.default_rng(5).standard_normal((24, *IMAGE))).astype(np.float32)


@pytest.fixture
def runner(step_graph):
    return OnnxRunner(
        step_graph,
        StepPorts(
            inputs={"token": StateSpec((), "int64")},
            outputs={
                "logits": StateSpec((VOCABULARY,), "float32"),
                "attention": StateSpec((ROWS, COLUMNS), "float32"),
            },
            states={"state.h": StateSpec((SIZE,), "float32")},
            after={"state.h": "next_state.h"},
            context={"memory.map": StateSpec((ROWS * COLUMNS, SIZE), "float32")},
            head=HeadPorts("token", "logits", "attention"),
        ),
        1,
    )


@pytest.fixture
def make_encoder(encoder_graph):
    def make(on_batch=lambda report: None):
        graph = OnnxEncoder(encoder_graph, ["state.h", "memory.map"], 1)
        return Encoder(graph, IMAGE, frozenset({"state.h"}), on_batch=on_batch)

    return make


def greedy_caption(oracle):
    tokens = []
    while len(tokens) < MAX_TOKENS and END not in tokens:
        tokens.append(int(oracle.logits(tokens).argmax()))
    return tokens


async def test_captions_of_many_images_at_once_are_those_of_numpy(runner, make_encoder, images, slow_search):
    batches = []
    core = EngineCore(runner, 32)
    engine = AsyncEngine(core, max_waiting=100, on_steps=lambda reports: None)
    encoder = make_encoder(batches.append)
    encoder.warm_up()
    encoder._pace = SimpleNamespace(max_batch=5, in_turns=False, note=lambda *_: None)

    async def caption(image, width):
        with engine.admit(max(width, 1)) as place:
            encoding = await encoder.encode(lambda: image)
            sequence = Request(
                np.array([BEGIN]),
                BeamParameters(width, MAX_TOKENS, END, 0.7, best=width)
                if width
                else SamplingParameters(MAX_TOKENS, temperature=0.0),
                end=END,
                snapshot=encoding.snapshot,
                context=encoding.context,
                attention=True,
            )
            stream, events = place.start(sequence), []
            while isinstance(event := await stream.get(), Told):
                events.append(event)
            return events, event

    async with AsyncExitStack() as stack:
        for part in (engine, encoder):
            part.start()
            stack.push_async_callback(part.close)
        told = await asyncio.gather(*(caption(image, place % 5) for place, image in enumerate(images)))

    reasons = set()
    for place, (events, end) in enumerate(told):
        oracle = Oracle(images[place])
        if place % 5:
            beam = BeamParameters(place % 5, MAX_TOKENS, END, 0.7, best=place % 5)
            expected = slow_search(beam, oracle.logits)
            assert [(h.tokens, h.reason) for h in end.result.hypotheses] == [
                (tokens, why) for tokens, *_, why in expected
            ]
            for hypothesis, (_, logprob, score, reason) in zip(end.result.hypotheses, expected, strict=True):
                assert (hypothesis.logprob, hypothesis.score) == pytest.approx((logprob, score), abs=1e-4)
                maps = oracle.maps(hypothesis.tokens)[: len(hypothesis.tokens)]
                np.testing.assert_allclose(hypothesis.attention, np.reshape(maps, (-1, ROWS, COLUMNS)), atol=1e-5)
                reasons.add(reason)
        else:
            tokens = [event.token for event in events]
            assert tokens == greedy_caption(oracle)
            np.testing.assert_allclose([event.attention for event in events], oracle.maps(tokens[:-1]), atol=1e-5)
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    assert sum(report.images for report in batches) == len(images)
    assert max(report.images for report in batches) == 5


def test_encoder_that_onnxruntime_cannot_load_is_refused():
    with pytest.raises(RunnerBroken, match="onnxruntime cannot load the encoder graph"):
        OnnxEncoder(b"no graph", [], 1)


async def test_encoder_on_onnxruntime_fails_an_image_that_is_not_finite_alone(make_encoder, images):
    encoder = make_encoder()
    encoder.start()
    try:
        async with asyncio.timeout(30):
            sound, broken = await asyncio.gather(
                encoder.encode(lambda: images[0]),
                encoder.encode(lambda: np.full(IMAGE, np.nan, np.float32)),
                return_exceptions=True,
            )
    finally:
        await encoder.close()
    np.testing.assert_allclose(sound.states["state.h"], Oracle(images[0]).h, atol=1e-5)
    assert str(broken) == "the outputs were not finite"
