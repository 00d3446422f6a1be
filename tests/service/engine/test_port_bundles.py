"""Bundles of several ports, one-hot ids and stored rows, opened as the service opens them."""

import numpy as np
import onnxruntime
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import BeamParameters, SamplingParameters, ScoreParameters, TensorParameters
from carousel.service.engine.port import Request
from carousel.service.engine.session import RunnerBroken
from carousel.service.served.opening import open_core
from tests.port_models import (
    FLOAT,
    INT64,
    VITALS_FILES,
    VITALS_IN,
    VITALS_OUT,
    VITALS_STATES,
    WARDS,
    WARDS_FILES,
    graph,
    node,
    publish_vitals,
)


def ends_of(core, requests):
    """The ends of these requests, and the tokens that each was told."""
    ends, tokens = {}, {id: [] for id in range(len(requests))}
    for id, request in enumerate(requests):
        core.add(id, request)
    while not core.idle:
        output = core.step()
        if output.batch is not None:
            for id, token in zip(output.batch.ids, output.batch.tokens, strict=True):
                tokens[id].append(token)
        ends.update(output.finished)
    return [ends[id] for id in range(len(requests))], list(tokens.values())


def test_bundle_of_three_inputs_and_three_outputs_is_run(tmp_path):
    bundle = open_bundle(publish_vitals(tmp_path))
    core = open_core(bundle, 1, 4)
    session = onnxruntime.InferenceSession(VITALS_FILES["step.onnx"])
    requests, expected = [], []
    for seed in range(9):
        random, steps = np.random.default_rng(seed), 1 + 17 * seed
        said = [[100 * random.random(), 37 + random.standard_normal(), random.standard_normal()] for _ in range(steps)]
        vitals = np.zeros((steps, 3), np.float32)
        for row, vector in zip(vitals, said, strict=True):
            bundle.codecs["vitals"].encode(vector, row)
        ward = np.zeros((steps, 4), np.float32)
        bundle.codecs["wards"].enter(random.integers(0, 4, steps), {"ward": ward})
        inputs = {"vitals": vitals, "ward": ward, "dose": random.integers(0, 9, steps).astype(np.int32)}
        prompt, fed = fed_steps(core._runner.ports.inputs, inputs)
        requests.append(Request(prompt, TensorParameters(("risk", "next", "total")), inputs=fed))
        h, taken = np.zeros((1, 5), np.float32), np.array([[7]])
        for step in range(steps):
            now = {name: array[step : step + 1] for name, array in inputs.items()}
            *outputs, h, taken = session.run(["risk", "next", "total", "h1", "taken1"], {**now, "h": h, "taken": taken})
        expected.append(dict(zip(("risk", "next", "total"), outputs, strict=True)))
    for end, right in zip(ends_of(core, requests)[0], expected, strict=True):
        assert {name: part.tobytes() for name, part in end.result.outputs.items()} == {
            name: part.tobytes() for name, part in right.items()
        }
    told = bundle.codecs["vitals"].told(right["next"][0])
    assert told.keys() == {"pulse", "fever", "lead"}
    assert bundle.codecs["risks"].probabilities(right["risk"][0]).sum() == pytest.approx(1)


def logits_by_hand(ids):
    """After each id, from the stored row on. [N, 4]"""
    session = onnxruntime.InferenceSession(WARDS_FILES["step.onnx"])
    h, said = np.linspace(-1, 1, 5).astype(np.float32)[None], []
    for one in ids:
        logits, h = session.run(["logits", "h1"], {"ward": np.eye(4, dtype=np.float32)[[one]], "h": h})
        said.append(logits[0])
    return np.array(said)


def test_ids_enter_a_float_port_as_one_hot_rows(tmp_path):
    core = open_core(open_bundle(publish_vitals(tmp_path, WARDS, WARDS_FILES)), 1, 4)
    prompts = [[0], [1, 3, 2], [2, 2, 0, 1, 3], [3] * 150]
    greedy = SamplingParameters(max_tokens=12, temperature=0.0)
    _, tokens = ends_of(core, [Request(np.array(prompt), greedy) for prompt in prompts])
    for prompt, said in zip(prompts, tokens, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(logits_by_hand(ids)[-1].argmax()))
        assert said == ids[len(prompt) :]


def test_one_hot_model_is_scored_and_searched(tmp_path):
    core = open_core(open_bundle(publish_vitals(tmp_path, WARDS, WARDS_FILES)), 1, 4)
    ids = np.array([1, 3, 2, 0, 2])
    search = BeamParameters(width=1, max_tokens=6, end=3)
    (scored, found), _ = ends_of(core, [Request(ids, ScoreParameters()), Request(ids, search)])
    logits = logits_by_hand(ids.tolist()).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scored.result.logprobs, logprobs[np.arange(4), ids[1:]], rtol=1e-6)
    best = found.result.hypotheses[0].tokens
    greedy = ids.tolist()
    for token in best:
        assert token == int(logits_by_hand(greedy)[-1].argmax())
        greedy.append(token)


def test_graph_whose_output_is_not_of_the_shape_that_it_declares_is_refused_at_load(tmp_path):
    """The shape comes of numbers that are fed, so nobody sees it before the graph is run."""
    weights = {"five": np.array([5]), "two": np.array([[1, 2]]), "zero": np.array([0]), "wrong": np.array([4])}
    nodes = [
        node("Identity", "h", "h1"),
        node("Identity", "taken", "taken1"),
        node("Identity", "vitals", "next"),
        node("Identity", "taken", "total"),
        node("Cast", "taken", "less", to=INT64),
        node("ReduceMin", "less", "least", keepdims=0),  # of the stored rows' zeros
        node("Unsqueeze", "least zero", "none"),
        node("Mul", "none zero", "nothing"),
        node("Add", "nothing wrong", "width"),
        node("Shape", "vitals", "sizes", start=0, end=1),
        node("Concat", "sizes width", "shape", axis=0),
        node("ConstantOfShape", "shape", "risk_"),
        node("Identity", "risk_", "risk"),
    ]
    declared = {**VITALS_OUT, "risk": (FLOAT, [5])}
    after = {"h1": (FLOAT, [5]), "taken1": (INT64, [1])}
    lying = graph(nodes, {**VITALS_IN, **VITALS_STATES}, {**declared, **after}, weights)
    labels = b'["none", "low", "high", "grave", "gone"]'
    path = publish_vitals(tmp_path, files={**VITALS_FILES, "step.onnx": lying, "risks.json": labels})
    with pytest.raises(RunnerBroken, match=r"risk|shape|Shape") as error:
        open_core(open_bundle(path), 1, 4)
    assert "\n" not in str(error.value)
