import json

import numpy as np
import onnxruntime
import pytest
from starlette.testclient import TestClient

from carousel.benchmarks.naive import create_app, sample
from carousel.benchmarks.step import StepGraph
from carousel.models.bundle import STEP_GRAPH, open_bundle

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32)) + 3


def greedy(bundle, prompt, steps):
    """The oracle: onnxruntime in a plain loop."""
    session = onnxruntime.InferenceSession(bundle.files[STEP_GRAPH])
    names = ["h0", "c0", "h1", "c1"]
    state = {f"state.{name}": np.zeros((1, 7), np.float32) for name in names}
    tokens, logprobs = [], []
    pending = list(prompt)
    while len(tokens) < steps:
        feed = {"token": np.array([pending.pop(0)], np.int64), **state}
        logits, *after = session.run(["logits", *(f"next_state.{name}" for name in names)], feed)
        state = {f"state.{name}": part for name, part in zip(names, after, strict=True)}
        if not pending:
            tokens.append(int(logits[0].argmax()))
            logprobs.append(float(logits[0].max() - np.log(np.exp(logits[0].astype(np.float64)).sum())))
            pending = tokens[-1:]
    return tokens, logprobs


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def socket(bundle):
    with TestClient(create_app(bundle, StepGraph(bundle))).websocket_connect("/v1/models/tiny/stream") as socket:
        yield socket


def run(socket, **start):
    socket.send_text(json.dumps({"type": "start", **start}))
    messages = [socket.receive_json()]
    while messages[-1]["type"] != "finished":
        messages.append(socket.receive_json())
    return messages


def test_naive_greedy_tokens_are_those_of_a_plain_loop(bundle, socket):
    for prompt in ([2, 6, 1], [4]):  # one socket, one generation after another
        accepted, *tokens, finished = run(socket, tokens=prompt, sampling={"max_tokens": 12, "temperature": 0})
        expected, logprobs = greedy(bundle, prompt, 12)
        assert len(set(expected)) > 1
        assert (accepted["type"], accepted["prompt_tokens"]) == ("accepted", len(prompt))
        assert [token["token"] for token in tokens] == expected
        assert [token["index"] for token in tokens] == list(range(12))
        assert [token["logprob"] for token in tokens] == pytest.approx(logprobs, abs=1e-5)
        assert "".join(token["text"] for token in tokens) == finished["text"]
        assert finished["reason"] == "length"


def test_naive_prompt_text_is_its_tokens(socket):
    sampling = {"max_tokens": 6, "temperature": 0}
    assert run(socket, prompt="ae\n", sampling=sampling)[1:] == run(socket, tokens=[2, 6, 1], sampling=sampling)[1:]


def test_naive_seed_repeats_and_top_k_1_is_greedy(bundle, socket):
    def tokens(**sampling):
        messages = run(socket, tokens=[3], sampling={"max_tokens": 30, "temperature": 1.5, **sampling})
        return [message["token"] for message in messages[1:-1]]

    assert tokens(seed=5) == tokens(seed=5)
    assert tokens(seed=5) != tokens(seed=6)
    assert tokens(seed=5, top_k=1) == greedy(bundle, [3], 30)[0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "expected"),
    [
        (1.0, 0, [0.1, 0.4, 0.05, 0.25, 0.2]),
        (1.0, 3, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        (0.5, 0, [0.01 / 0.275, 0.16 / 0.275, 0.0025 / 0.275, 0.0625 / 0.275, 0.04 / 0.275]),
    ],
)
def test_naive_sampling_follows_the_distribution(temperature, top_k, expected):
    generator = np.random.default_rng(11)
    draws = [sample(LOGITS, temperature, top_k, 1.0, generator) for _ in range(20_000)]
    shares = np.bincount([token for token, _ in draws], minlength=5) / len(draws)
    assert shares == pytest.approx(expected, abs=0.015)  # four standard errors
    assert {round(float(np.exp(logprob)), 3) for token, logprob in draws if token == 3} == {0.25}
