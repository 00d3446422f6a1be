"""Outputs as they are: of each step or of the last, for rows that come, move and leave."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, SamplingParameters, TensorParameters
from carousel.service.engine.port import Request
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE

BOTH = ("attention", "logits")


def context_of(value):
    return {"memory.a": np.full(7, value, np.float32), "memory.b": np.full((1, 2), value)}


def run(core, requests):
    """The end of each; one joins at every third step."""
    ends, waiting = {}, list(enumerate(requests))
    while waiting or not core.idle:
        if waiting:
            core.add(*waiting.pop(0))
        for _ in range(3):
            with np.errstate(all="ignore"):
                ends.update(core.step().finished)
    return [ends[id] for id in range(len(requests))]


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("names", [BOTH, ("logits",), ("attention",)])
def test_tensors_are_the_outputs_of_each_step_or_of_the_last(make_runner, states_after, map_of, names, each):
    random = np.random.default_rng(4)
    runner = make_runner(looks=True)
    prompts = [random.integers(0, 23, length) for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 9, 40, 3, 77)]
    asked = [
        Request(ids, TensorParameters(names, each), context=context_of(place)) for place, ids in enumerate(prompts)
    ]
    others = [
        Request(ids[:9], SamplingParameters(max_tokens=50, seed=place), context=context_of(place))
        for place, ids in enumerate(prompts)
    ]
    ends = run(EngineCore(runner, 5), [request for pair in zip(asked, others, strict=True) for request in pair])[::2]
    oracle = {"logits": runner.logits_of, "attention": map_of}
    for place, (ids, end) in enumerate(zip(prompts, ends, strict=True)):
        assert (end.reason, end.counts) == (FinishReason.STOP, (len(ids), 0))
        assert end.result.outputs.keys() == set(names)
        states = states_after(ids.tolist(), place)
        for name, found in end.result.outputs.items():
            np.testing.assert_array_equal(found, [oracle[name](state) for state in (states if each else states[-1:])])


def test_rows_that_ask_for_different_outputs_get_their_own(make_runner, states_after, map_of):
    runner = make_runner(looks=True)
    ids = np.arange(9)
    requests = [
        Request(ids, TensorParameters(names, each=place % 2 == 0), context=context_of(5))
        for place, names in enumerate([("logits",), ("logits",), ("attention",), BOTH, BOTH])
    ]
    states = states_after(ids.tolist(), 5)
    for request, end in zip(requests, run(EngineCore(runner, 8), requests), strict=True):
        for name, found in end.result.outputs.items():
            expected = [runner.logits_of(state) if name == "logits" else map_of(state) for state in states]
            np.testing.assert_array_equal(found, expected if request.head.each else expected[-1:])


def test_row_whose_asked_output_is_not_finite_fails_alone(runner):
    runner.fault = lambda state, token: np.nan if token == 11 else None
    requests = [Request(np.array(ids), TensorParameters(("logits",), True)) for ids in ([1, 2, 3], [1, 11, 3], [4, 5])]
    sound, bad, other = run(EngineCore(runner, 4), requests)
    assert (bad.reason, bad.detail, bad.result) == (FinishReason.FAILED, NOT_FINITE, None)
    assert len(sound.result.outputs["logits"]) == 3
    assert len(other.result.outputs["logits"]) == 2


def test_tensors_of_a_cancelled_request_are_not_told(runner):
    core = EngineCore(runner, 1)
    core.add(0, Request(np.arange(20), TensorParameters(("logits",), True), keep_state=True))
    for _ in range(5):
        core.step()
    core.cancel(0)
    ((_, end),) = core.step().finished
    assert (end.reason, end.result, end.counts) == (FinishReason.CANCELLED, None, (5, 0))
    assert end.snapshot.pending.tolist() == list(range(5, 20))
    assert not any(head.count for head in core._heads.values())
