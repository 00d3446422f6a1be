"""The engine on onnxruntime and a real graph, against torch."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from models.bundle import STEP_GRAPH, open_bundle
from service.engine.core import EngineCore
from service.engine.runner import OnnxRunner
from service.engine.sequence import SamplingParameters, Sequence
from service.engine.state_pool import StateSpec


@pytest.fixture
def onnx_runner(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    states = {spec.name: StateSpec(tuple(spec.shape[1:]), spec.dtype) for spec in bundle.step.states}
    return OnnxRunner(bundle.files[STEP_GRAPH], states, bundle.codec.vocabulary_size, intra_op_threads=1)


def arrays(runner, n, seed):
    random = np.random.default_rng(seed)
    states = {name: random.standard_normal((n, *spec.shape)).astype(spec.dtype) for name, spec in runner.states.items()}
    ids = random.integers(0, runner.vocabulary_size, n)
    return ids, states, {name: np.zeros_like(array) for name, array in states.items()}


def test_bound_step_keeps_its_memory_alive(onnx_runner):
    logits = np.zeros((3, onnx_runner.vocabulary_size), np.float32)
    step = onnx_runner.bind(*arrays(onnx_runner, 3, seed=1), logits)
    gc.collect()
    litter = [np.full(3, -(10**9)) for _ in range(1000)]  # what takes the place of memory that was freed
    step()
    first = logits.copy()
    step()
    assert litter
    np.testing.assert_array_equal(first, logits)


def test_bound_step_writes_where_it_was_told(onnx_runner):
    ids, before, after = arrays(onnx_runner, 5, seed=2)
    logits = np.zeros((7, onnx_runner.vocabulary_size), np.float32)
    kept = {name: array.copy() for name, array in before.items()}
    onnx_runner.bind(ids, before, after, logits[1:6])()
    assert not logits[[0, 6]].any()
    assert np.abs(logits[1:6]).sum(axis=1).all()
    assert all(np.abs(array).sum(axis=1).all() for array in after.values())
    for name, array in before.items():
        np.testing.assert_array_equal(array, kept[name])


def test_engine_generates_what_torch_generates(tiny_bundle, onnx_runner, tmp_path, make_checkpoint):
    from models.nn.checkpoint import load_language_model, read_checkpoint
    from models.nn.language import generate

    model, _ = load_language_model(read_checkpoint(make_checkpoint(tmp_path / "tiny.safetensors")))  # tiny_bundle's own
    core = EngineCore(onnx_runner, 8)
    core.warm_up()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]]
    sampling = SamplingParameters(max_tokens=30, temperature=0.0)
    sequences = [Sequence(np.array(prompt), sampling) for prompt in prompts]
    told = {sequence: [] for sequence in sequences}
    for sequence in sequences:
        core.add(sequence)
    while not core.idle:
        batch = core.step().batch
        for sequence, token in zip(batch.sequences, batch.tokens, strict=True) if batch else ():
            told[sequence].append(token)
    assert list(told.values()) == [generate(model, prompt, 30) for prompt in prompts]
