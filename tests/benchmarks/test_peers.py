"""The peers serve the model that Carousel serves: what a plain loop over the step graph says, they say."""

import json
from pathlib import Path

import numpy as np
import pytest

from carousel.benchmarks.server import BUNDLE_VARIABLE
from carousel.benchmarks.step import StepGraph
from carousel.models.bundle import open_bundle

PROMPTS = ([2, 6, 1], [4])
LENGTHS = (5, 9)


def greedy(bundle, prompt, count):
    graph = StepGraph(bundle)
    states, tokens = graph.initial_states(1), []
    for token in prompt:
        logits, states = graph.run(np.array([token]), states)
    while len(tokens) < count:
        tokens.append(int(logits[0].argmax()))
        logits, states = graph.run(np.array(tokens[-1:]), states)
    return tokens


def sampling(count):
    return {"max_tokens": count, "temperature": 0.0, "seed": 1}


def test_torch_takes_the_steps_of_the_graph(make_checkpoint, make_bundle, tmp_path):
    from carousel.benchmarks.peers.torch_eager import TorchStep
    from carousel.models.nn.checkpoint import read_checkpoint
    from tests.trained import load_language_model

    model, _ = load_language_model(read_checkpoint(make_checkpoint(tmp_path / "best.safetensors", seed=3)))
    step = TorchStep(model)
    graph = StepGraph(open_bundle(make_bundle(tmp_path / "repository", "tiny", seed=3)))
    states, expected_states = step.initial_states(2), graph.initial_states(2)
    for tokens in ([3, 1], [7, 7], [0, 12]):
        logits, states = step.run(np.array(tokens), states)
        expected, expected_states = graph.run(np.array(tokens), expected_states)
        assert logits == pytest.approx(expected, abs=1e-5)


def test_litserve_steps_a_batch_of_unequal_requests(tiny_bundle):
    pytest.importorskip("litserve", reason="litserve is not installed (it comes with the extra 'peers')")
    from carousel.benchmarks.peers.lit_serve import Words

    words = Words(tiny_bundle, stream=True, max_batch_size=2)
    words.setup("cpu")
    batch = [{"tokens": prompt, "sampling": sampling(count)} for prompt, count in zip(PROMPTS, LENGTHS, strict=True)]
    steps = list(words.encode_response(words.unbatch(words.predict(batch))))
    for row, (prompt, count) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        said = [json.loads(step[row])["token"] for step in steps if step[row]]
        assert said == greedy(open_bundle(tiny_bundle), prompt, count)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's own, of its dependencies
async def test_bentoml_streams_a_token_a_line(tiny_bundle, monkeypatch):
    pytest.importorskip("bentoml", reason="bentoml is not installed (it comes with the extra 'peers')")
    monkeypatch.setenv(BUNDLE_VARIABLE, str(tiny_bundle))
    from carousel.benchmarks.peers.bento import Words

    words = Words.inner()
    for prompt, count in zip(PROMPTS, LENGTHS, strict=True):
        said = [json.loads(line)["token"] async for line in words.generate(prompt, sampling(count))]
        assert said == greedy(open_bundle(Path(tiny_bundle)), prompt, count)
