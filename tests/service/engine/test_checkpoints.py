"""States copied on the way through a prompt, and sequences that start from one: nothing tells them from cold ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, ReadParameters, SamplingParameters
from carousel.service.engine.port import Request, Snapshot
from carousel.service.engine.rows.table import CHUNK
from carousel.service.engine.sequence import Sequence
from carousel.service.served.opening import open_runner

BUNDLES = Path(__file__).parents[3] / "bundles"
SAMPLING = SamplingParameters(max_tokens=20, temperature=0.9, top_p=0.9, repetition_penalty=1.7, seed=5)


def run(core, *sequences):
    """Tokens, log-probabilities and end of each."""
    told = [([], []) for _ in sequences]
    ends = {}
    for id, sequence in enumerate(sequences):
        core.add(id, sequence)
    while not core.idle:
        output = core.step()
        if output.batch:
            for place, (id, *token) in enumerate(
                zip(output.batch.ids, output.batch.tokens, output.batch.logprobs, strict=True)
            ):
                for values, value in zip(told[id], token, strict=True):
                    values.append(value)
                early = output.batch.checkpoints.get(place, {})
                assert set(early) == (set(sequences[id].wanted) if len(told[id][0]) == 1 else set()), "told once"
        ends.update(output.finished)
    return [(*told[id], ends[id]) for id in range(len(sequences))]


def warm(prompt, cold, cut, head=SAMPLING, **fields):
    """A request of the same prompt that starts at a checkpoint of a cold one, by its end."""
    snapshot = Snapshot(cold.checkpoints[cut], prompt[cut:])
    return Request(prompt, head, snapshot=snapshot, consumed=cut, **fields)


def same_states(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("checkpoints", [(1,), (127, 128, 129), (5, 40, 41, 299), tuple(range(300))])
def test_checkpoints_are_the_states_after_so_many_ids(runner, states_after, greedy_oracle, checkpoints):
    prompt = np.random.default_rng(0).integers(0, 23, 300)
    sequence = Request(prompt, SamplingParameters(max_tokens=4, temperature=0.0), checkpoints=checkpoints)
    other = Request(prompt[:50], SamplingParameters(max_tokens=400, seed=1))
    (tokens, _, end), _ = run(EngineCore(runner, 2), sequence, other)
    expected = [0, *states_after(prompt.tolist())]
    assert {at: int(state["state.a"][0]) for at, state in end.checkpoints.items()} == {
        at: expected[at] for at in checkpoints
    }
    assert tokens == greedy_oracle(prompt.tolist(), 4)


def test_warm_sequences_are_as_cold_ones_at_every_cut_and_all_at_once(runner):
    prompt = np.random.default_rng(1).integers(0, 23, CHUNK + 40)
    cold = Request(prompt, SAMPLING, checkpoints=tuple(range(len(prompt))), keep_state=True)
    core = EngineCore(runner, 64)
    ((tokens, logprobs, end),) = run(core, cold)
    sequences = [warm(prompt, end, cut, keep_state=True) for cut in range(len(prompt))]
    steps = runner.steps
    results = run(core, *sequences)
    assert all(result[:2] == (tokens, logprobs) for result in results)
    assert all(same_states(end.snapshot.state, result[2].snapshot.state) for result in results)
    assert all(result[2].snapshot.pending.tolist() == end.snapshot.pending.tolist() for result in results)
    assert runner.steps - steps < sum(len(prompt) - cut for cut in range(len(prompt))) / 20
    ((other, _, _),) = run(core, Request(prompt[-1:], SAMPLING, snapshot=warm(prompt, end, len(prompt) - 1).snapshot))
    assert other != tokens  # the penalty is of the whole prompt: it must show


def test_warm_prompt_is_kept_like_a_cold_one(runner):
    prompt = np.random.default_rng(2).integers(0, 23, 30)
    cold = Request(prompt, SAMPLING, checkpoints=(7, 29), keep_state=True, keep_prompt=True)
    ends = [run(EngineCore(runner, 1), cold)[0][2]]
    for cut in (7, 29):
        again = warm(prompt, ends[0], cut, keep_state=True, keep_prompt=True)
        ends.append(run(EngineCore(runner, 1), again)[0][2])
    for end in ends:
        assert same_states(end.snapshot.state, ends[0].checkpoints[29])
        assert end.snapshot.pending.tolist() == prompt[-1:].tolist()


def test_warm_readout_says_the_same_at_the_end(runner):
    ids = np.random.default_rng(3).integers(0, 23, CHUNK + 9)
    cold = Request(ids, ReadParameters(ids), checkpoints=tuple(range(len(ids))), keep_state=True)
    ((_, _, expected),) = run(EngineCore(runner, 4), cold)
    for cut in range(0, len(ids), 5):
        again = warm(ids, expected, cut, ReadParameters(ids), keep_state=True)
        ((_, _, end),) = run(EngineCore(runner, 4), again)
        np.testing.assert_array_equal(end.result.outputs, expected.result.outputs)
        np.testing.assert_array_equal(end.result.values, expected.result.values[cut:])
        assert same_states(end.snapshot.state, expected.snapshot.state)


def test_cancelled_prompt_has_the_checkpoints_that_it_reached(runner, states_after):
    prompt = np.arange(20)
    core = EngineCore(runner, 1)
    core.add(0, Request(prompt, SAMPLING, checkpoints=(3, 6, 9, 12)))
    for _ in range(7):
        core.step()
    core.cancel(0)
    ((_, end),) = core.step().finished
    assert end.reason is FinishReason.CANCELLED
    states = states_after(prompt.tolist())
    assert {at: state["state.a"][0] for at, state in end.checkpoints.items()} == {3: states[2], 6: states[5]}


def test_warm_sequence_that_never_ran_has_the_rest_of_its_prompt_before_it(runner):
    prompt = np.arange(20)
    ((_, _, cold),) = run(EngineCore(runner, 1), Request(prompt, SAMPLING, checkpoints=(8,)))
    core = EngineCore(runner, 1)
    core.add(0, warm(prompt, cold, 8, keep_state=True))
    core.cancel(0)
    ((_, end),) = core.step().finished
    assert same_states(end.snapshot.state, cold.checkpoints[8])
    assert end.snapshot.pending.tolist() == list(range(8, 20))


@pytest.fixture(params=["tiny, fp32", "shakespeare, int8", "tutor, int8"])
def bundle(request, tiny_bundle):
    name, precision = request.param.split(", ")
    opened = open_bundle(tiny_bundle if name == "tiny" else BUNDLES / name / "2")
    assert opened.manifest.precision == precision
    return opened


def test_outputs_of_real_graphs_are_equal_bit_for_bit_at_every_cut(bundle):
    reads = bundle.manifest.task == "tracing"
    ids = np.random.default_rng(4).integers(0, bundle.output_size, 70)
    head = ReadParameters(ids // 2) if reads else SAMPLING
    core = EngineCore(open_runner(bundle, 1), 16)

    def outputs_after(request):
        core.add(0, request)
        outputs, end = [], None
        while end is None:
            output = core.step()
            if reads or output.batch:
                outputs.append(core._steps.outputs[core._runner.ports.head.reads][0].copy())
            end = output.finished[0][1] if output.finished else None
        return outputs[-1:] if reads else outputs, end

    outputs, cold = outputs_after(Request(ids, head, checkpoints=tuple(range(70)), keep_state=True))
    for cut in range(70):
        again, after = outputs_after(warm(ids, cold, cut, head, keep_state=True))
        assert [one.tobytes() for one in again] == [one.tobytes() for one in outputs]
        assert same_states(after.snapshot.state, cold.snapshot.state)


def test_neither_request_nor_sequence_is_written_out_with_its_states():
    """A list that does not hold a sequence says so in words, and thousands may be cancelled at once."""
    state = {"state.a": np.zeros(100_000, np.float32)}
    request = Request(np.arange(2000), SAMPLING, snapshot=Snapshot(state, np.arange(2000)))
    assert len(repr(request)) < 200
    assert len(repr(Sequence(0, request, batch=False))) < 200
