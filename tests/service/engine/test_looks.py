"""States copied on the way through a prompt, and sequences that start from one: nothing tells them from cold ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.core import EngineCore
from carousel.service.engine.rows.table import CHUNK
from carousel.service.engine.sequence import FinishReason, Readout, SamplingParameters, Sequence, Snapshot
from carousel.service.served.opening import open_runner

BUNDLES = Path(__file__).parents[3] / "bundles"
SAMPLING = SamplingParameters(max_tokens=20, temperature=0.9, top_p=0.9, repetition_penalty=1.7, seed=5)


def run(core, *sequences):
    """Tokens, log-probabilities and end of each."""
    told = {sequence: ([], []) for sequence in sequences}
    ends = {}
    for sequence in sequences:
        core.add(sequence)
    while not core.idle:
        output = core.step()
        if output.batch:
            for sequence, *token in zip(
                output.batch.sequences, output.batch.tokens, output.batch.logprobs, strict=True
            ):
                for values, value in zip(told[sequence], token, strict=True):
                    values.append(value)
        ends.update(output.finished)
    return [(*told[sequence], ends[sequence]) for sequence in sequences]


def warm(cold, cut, sampling=SAMPLING, **fields):
    """A sequence of the same prompt that starts where a cold one was looked at."""
    snapshot = Snapshot(cold.looked[cut], cold.prompt[cut:])
    return Sequence(cold.prompt, sampling, snapshot=snapshot, eaten=cut, **fields)


def same_states(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("looks", [(1,), (127, 128, 129), (5, 40, 41, 299), tuple(range(300))])
def test_looks_are_the_states_after_so_many_ids(runner, states_after, greedy_oracle, looks):
    prompt = np.random.default_rng(0).integers(0, 23, 300)
    sequence = Sequence(prompt, SamplingParameters(max_tokens=4, temperature=0.0), looks=looks)
    other = Sequence(prompt[:50], SamplingParameters(max_tokens=400, seed=1))
    (tokens, _, _), _ = run(EngineCore(runner, 2), sequence, other)
    expected = [0, *states_after(prompt.tolist())]
    assert {look: int(state["state.a"][0]) for look, state in sequence.looked.items()} == {
        look: expected[look] for look in looks
    }
    assert tokens == greedy_oracle(prompt.tolist(), 4)


def test_warm_sequences_are_as_cold_ones_at_every_cut_and_all_at_once(runner):
    prompt = np.random.default_rng(1).integers(0, 23, CHUNK + 40)
    cold = Sequence(prompt, SAMPLING, looks=tuple(range(len(prompt))), keep_state=True)
    core = EngineCore(runner, 64)
    ((tokens, logprobs, end),) = run(core, cold)
    sequences = [warm(cold, cut, keep_state=True) for cut in range(len(prompt))]
    steps = runner.steps
    results = run(core, *sequences)
    assert all(result[:2] == (tokens, logprobs) for result in results)
    assert all(same_states(end.snapshot.state, result[2].snapshot.state) for result in results)
    assert all(result[2].snapshot.pending.tolist() == end.snapshot.pending.tolist() for result in results)
    assert runner.steps - steps < sum(len(prompt) - cut for cut in range(len(prompt))) / 20
    ((other, _, _),) = run(core, Sequence(prompt[-1:], SAMPLING, snapshot=warm(cold, len(prompt) - 1).snapshot))
    assert other != tokens  # the penalty is of the whole prompt: it must show


def test_warm_prompt_is_kept_like_a_cold_one(runner):
    prompt = np.random.default_rng(2).integers(0, 23, 30)
    cold = Sequence(prompt, SAMPLING, looks=(7, 29), keep_state=True, keep_prompt=True)
    ends = [run(EngineCore(runner, 1), cold)[0][2]]
    ends += [run(EngineCore(runner, 1), warm(cold, cut, keep_state=True, keep_prompt=True))[0][2] for cut in (7, 29)]
    for end in ends:
        assert same_states(end.snapshot.state, cold.looked[29])
        assert end.snapshot.pending.tolist() == prompt[-1:].tolist()


def test_warm_readout_says_the_same_at_the_end(runner):
    ids = np.random.default_rng(3).integers(0, 23, CHUNK + 9)
    cold = Sequence(ids, None, Readout(ids), looks=tuple(range(len(ids))), keep_state=True)
    ((_, _, expected),) = run(EngineCore(runner, 4), cold)
    for cut in range(0, len(ids), 5):
        again = warm(cold, cut, None, readout=Readout(ids), keep_state=True)
        ((_, _, end),) = run(EngineCore(runner, 4), again)
        np.testing.assert_array_equal(end.reading.outputs, expected.reading.outputs)
        np.testing.assert_array_equal(end.reading.values, expected.reading.values[cut:])
        assert same_states(end.snapshot.state, expected.snapshot.state)


def test_cancelled_prompt_was_looked_at_as_far_as_it_was_eaten(runner, states_after):
    prompt = np.arange(20)
    core = EngineCore(runner, 1)
    sequence = Sequence(prompt, SAMPLING, looks=(3, 6, 9, 12))
    core.add(sequence)
    for _ in range(7):
        core.step()
    core.cancel(sequence)
    assert core.step().finished[0][1].reason is FinishReason.CANCELLED
    states = states_after(prompt.tolist())
    assert {look: state["state.a"][0] for look, state in sequence.looked.items()} == {3: states[2], 6: states[5]}


def test_warm_sequence_that_never_ran_has_the_rest_of_its_prompt_before_it(runner):
    prompt = np.arange(20)
    cold = Sequence(prompt, SAMPLING, looks=(8,))
    run(EngineCore(runner, 1), cold)
    core, waiting = EngineCore(runner, 1), warm(cold, 8, keep_state=True)
    core.add(waiting)
    core.cancel(waiting)
    ((_, end),) = core.step().finished
    assert same_states(end.snapshot.state, cold.looked[8])
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
    fields = {"sampling": None, "readout": Readout(ids // 2)} if reads else {"sampling": SAMPLING}
    core = EngineCore(open_runner(bundle, 1), 16)

    def outputs_after(sequence):
        core.add(sequence)
        outputs, end = [], None
        while end is None:
            output = core.step()
            if reads or output.batch:
                outputs.append(core._outputs[0].copy())
            end = output.finished[0][1] if output.finished else None
        return outputs[-1:] if reads else outputs, end.snapshot

    cold = Sequence(ids, **fields, looks=tuple(range(70)), keep_state=True)
    outputs, snapshot = outputs_after(cold)
    for cut in range(70):
        warm = Sequence(ids, **fields, snapshot=Snapshot(cold.looked[cut], ids[cut:]), eaten=cut, keep_state=True)
        again, after = outputs_after(warm)
        assert [one.tobytes() for one in again] == [one.tobytes() for one in outputs]
        assert same_states(after.state, snapshot.state)


def test_sequence_is_not_written_out_with_its_states(runner):
    """A list that does not hold a sequence says so in words, and thousands may be cancelled at once."""
    state = {"state.a": np.zeros(100_000, np.float32)}
    sequence = Sequence(np.arange(2000), SAMPLING, snapshot=Snapshot(state, np.arange(2000)))
    assert len(repr(sequence)) < 200
    EngineCore(runner, 1).cancel(sequence)
