"""The engine on onnxruntime and a real graph, against torch."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import onnx
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import ReadParameters, SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.engine.runner import StepArrays
from carousel.service.engine.sampling.softmax import Softmax
from carousel.service.engine.session import SOFTMAX_GRAPH
from carousel.service.served.opening import open_runner


@pytest.fixture
def onnx_runner(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    return open_runner(bundle, intra_op_threads=1)


def arrays(runner, n, seed):
    random, given = np.random.default_rng(seed), StepArrays.of(runner.ports, n)
    for array in given.before.values():
        array[:] = random.standard_normal(array.shape)
    given.inputs["token"][:] = random.integers(0, given.outputs["logits"].shape[1], n)
    return given


def test_bound_step_keeps_its_memory_alive(onnx_runner):
    given = arrays(onnx_runner, 3, seed=1)
    logits, step = given.outputs["logits"], onnx_runner.bind(given)
    del given
    gc.collect()
    litter = [np.full(3, -(10**9)) for _ in range(1000)]  # what takes the place of memory that was freed
    step()
    first = logits.copy()
    step()
    assert litter
    np.testing.assert_array_equal(first, logits)


def test_bound_step_writes_where_it_was_told(onnx_runner):
    given = arrays(onnx_runner, 5, seed=2)
    logits = np.zeros((7, given.outputs["logits"].shape[1]), np.float32)
    before, after = given.before, given.after
    kept = {name: array.copy() for name, array in before.items()}
    onnx_runner.bind(replace(given, outputs={"logits": logits[1:6]}))()
    assert not logits[[0, 6]].any()
    assert np.abs(logits[1:6]).sum(axis=1).all()
    assert all(np.abs(array).sum(axis=1).all() for array in after.values())
    for name, array in before.items():
        np.testing.assert_array_equal(array, kept[name])


def test_engine_generates_what_torch_generates(tiny_bundle, onnx_runner, tmp_path, make_checkpoint):
    from carousel.models.nn.checkpoint import read_checkpoint
    from carousel.models.nn.language import generate
    from tests.trained import load_language_model

    model, _ = load_language_model(read_checkpoint(make_checkpoint(tmp_path / "tiny.safetensors")))  # tiny_bundle's own
    core = EngineCore(onnx_runner, 8)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]]
    sampling = SamplingParameters(max_tokens=30, temperature=0.0)
    sequences = [Request(np.array(prompt), sampling) for prompt in prompts]
    told = {id: [] for id in range(len(sequences))}
    for id, sequence in enumerate(sequences):
        core.add(id, sequence)
    while not core.idle:
        batch = core.step().batch
        for id, token in zip(batch.ids, batch.tokens, strict=True) if batch else ():
            told[id].append(token)
    assert list(told.values()) == [generate(model, prompt, 30) for prompt in prompts]


@pytest.fixture
def tracing_runner(tiny_tracing_bundle):
    return open_runner(open_bundle(tiny_tracing_bundle), intra_op_threads=1)


@pytest.fixture
def tracing_oracle(make_tracing_checkpoint, tmp_path):
    """P(correct) at every skill after each attempt of a history, by torch. <float32>[N, S]"""
    import torch

    from carousel.models.nn.checkpoint import read_checkpoint
    from tests.trained import load_tracing_model

    model, _ = load_tracing_model(read_checkpoint(make_tracing_checkpoint(tmp_path / "tutor.safetensors")))

    def run(ids):
        with torch.inference_mode():
            return model(torch.from_numpy(ids)[None], model.initial_state(1))[0][0].sigmoid().numpy()

    return run


def run(core, *sequences):
    """The end of each."""
    ends = {}
    for id, sequence in enumerate(sequences):
        core.add(id, sequence)
    while not core.idle:
        ends.update(core.step().finished)
    return [ends[id] for id in range(len(sequences))]


def test_engine_reads_what_torch_predicts(tracing_runner, tracing_oracle):
    random = np.random.default_rng(3)
    core = EngineCore(tracing_runner, 4)
    histories = [random.integers(0, 10, length) for length in (1, 2, 128, 129, 300, 7)]
    readouts = [
        ReadParameters(
            random.integers(0, 5, len(ids)), np.array([3, 0]) if place % 2 else None, last=1 + 150 * (place > 2)
        )
        for place, ids in enumerate(histories)
    ]
    ends = run(core, *(Request(ids, readout) for ids, readout in zip(histories, readouts, strict=True)))
    for ids, readout, end in zip(histories, readouts, ends, strict=True):
        expected = tracing_oracle(ids)
        np.testing.assert_allclose(end.result.values, expected[range(len(ids)), readout.targets], atol=1e-5)
        np.testing.assert_allclose(end.result.outputs, expected[-readout.last :], atol=1e-5)
        if readout.columns is None:
            assert end.result.curve is None
        else:
            np.testing.assert_allclose(end.result.curve, expected[:, readout.columns], atol=1e-5)


def test_readout_resumed_anywhere_equals_one_run_bit_for_bit(tracing_runner):
    random = np.random.default_rng(4)
    ids, targets = random.integers(0, 10, 140), random.integers(0, 5, 140)
    core = EngineCore(tracing_runner, 8)
    (whole,) = run(core, Request(ids, ReadParameters(targets), keep_state=True))
    cuts = [1, 2, 70, 127, 128, 129, 139]
    firsts = run(core, *(Request(ids[:cut], ReadParameters(targets[:cut]), keep_state=True) for cut in cuts))
    rests = run(
        core,
        *(
            Request(ids[cut:], ReadParameters(targets[cut:]), snapshot=first.snapshot, keep_state=True)
            for cut, first in zip(cuts, firsts, strict=True)
        ),
    )
    for first, rest in zip(firsts, rests, strict=True):
        values = np.concatenate([first.result.values, rest.result.values])
        np.testing.assert_array_equal(values, whole.result.values)
        np.testing.assert_array_equal(rest.result.outputs, whole.result.outputs)
        assert len(rest.snapshot.pending) == 0
        for name, row in rest.snapshot.state.items():
            np.testing.assert_array_equal(row, whole.snapshot.state[name])


def test_softmax_graph_is_one_node_and_agrees_with_numpy():
    model = onnx.load(SOFTMAX_GRAPH)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Softmax"]
    softmax = Softmax()
    logits = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32) * 20
    logits[3, 5] = np.nan
    found = np.zeros_like(logits)
    for block in (logits, logits[1:4], logits):  # bound anew when it is called with other arrays
        softmax(block, found[: len(block)])
        weights = np.exp(block.astype(np.float64) - block.max(axis=1, keepdims=True))
        np.testing.assert_allclose(found[: len(block)], weights / weights.sum(axis=1, keepdims=True), atol=1e-6)
    assert softmax.in_place
    softmax(logits, logits)
    assert logits.tobytes() == found.tobytes()
