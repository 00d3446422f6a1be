"""Prompts taken forward by the prefill graph, on a runner whose every answer is known: nobody may be able to tell."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, ReadParameters, SamplingParameters, ScoreParameters
from carousel.service.engine.port import Request
from carousel.service.engine.prefill.prefill import MAX_ROWS, MAX_TOKENS, MAX_TOKENS_ALONE, MIN_TOKENS
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE
from carousel.service.engine.session import RunnerBroken

MODULUS = 9973
LENGTHS = [1, 2, MIN_TOKENS, MIN_TOKENS + 1, MIN_TOKENS + 2, CHUNK, CHUNK + 1, CHUNK + 2, 4 * CHUNK + 30]


class FakePrefill:
    """Folds ids into the states as the fake runner does. `fault` may raise, by the ids of a row."""

    says = False

    def __init__(self):
        self.calls = []
        self.fault = lambda ids: None

    def __call__(self, fed, states):
        (ids,) = fed.values()
        self.calls.append(ids.copy())
        folded = states["state.a"][:, 0].astype(np.int64)
        for column in ids.T:
            folded = (folded * 31 + column + 1) % MODULUS
        for row in ids.tolist():
            self.fault(row)
        return {
            "state.a": folded[:, None].astype(np.float32),
            "state.b": np.broadcast_to(folded[:, None, None], (len(ids), 2, 3)).astype(np.float32),
        }

    @property
    def consumed(self):
        return sum(ids.size for ids in self.calls)


@pytest.fixture
def prefill():
    return FakePrefill()


class Listener:
    """Steps a core and keeps what each sequence was told."""

    def __init__(self, runner, prefill=None, max_rows=16):
        self.core = EngineCore(runner, max_rows, prefill=prefill)
        self.tokens, self.ends, self.reports = {}, {}, []

    def add(self, prompt, head, **fields):
        sequence = len(self.tokens)
        self.tokens[sequence] = []
        self.core.add(sequence, Request(np.array(prompt), head, **fields))
        return sequence

    def step(self):
        with np.errstate(all="ignore"):
            output = self.core.step()
        if output.batch:
            for sequence, token in zip(output.batch.ids, output.batch.tokens, strict=True):
                self.tokens[sequence].append(token)
        self.ends.update(output.finished)
        if output.report:
            self.reports.append(output.report)

    def run(self):
        while not self.core.idle:
            self.step()

    def one(self, prompt, head, **fields):
        sequence = self.add(prompt, head, **fields)
        self.run()
        return self.tokens[sequence], self.ends[sequence]


def greedy(max_tokens=5, **fields):
    return SamplingParameters(max_tokens=max_tokens, temperature=0.0, **fields)


def random_ids(length, seed=0):
    return np.random.default_rng([seed, length]).integers(0, 23, length).tolist()


def same_snapshot(one, other):
    assert one.pending.tolist() == other.pending.tolist()
    assert one.state.keys() == other.state.keys()
    return all(one.state[name].tobytes() == other.state[name].tobytes() for name in one.state)


@pytest.mark.parametrize("length", LENGTHS)
def test_prefilled_prompt_gives_what_the_oracle_gives_in_fewer_steps(runner, prefill, greedy_oracle, length):
    prompt, listener = random_ids(length), Listener(runner, prefill)
    tokens, _ = listener.one(prompt, greedy(9))
    assert tokens == greedy_oracle(prompt, 9)
    assert (prefill.consumed > 0) == (length > MIN_TOKENS)
    assert runner.steps == length + 8 - prefill.consumed
    assert sum(report.prompt_tokens + report.consumed_ahead for report in listener.reports) == length
    if length == max(LENGTHS):
        assert runner.steps < 8 + length / 50


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keep_prompt", [True, False])
def test_snapshot_is_the_same_with_prefill_and_without(make_runner, prefill, length, keep_prompt):
    prompt = random_ids(length)
    fields = {"keep_state": True, "keep_prompt": keep_prompt}
    _, with_prefill = Listener(make_runner(), prefill).one(prompt, greedy(3), **fields)
    _, without = Listener(make_runner()).one(prompt, greedy(3), **fields)
    assert same_snapshot(with_prefill.snapshot, without.snapshot)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_cancelled_prompt_keeps_what_it_has_not_consumed(runner, prefill, greedy_oracle, steps):
    prompt, listener = random_ids(5 * CHUNK), Listener(runner, prefill)
    listener.add([1], greedy(100))
    sequence = listener.add(prompt, greedy(4), keep_state=True)
    for _ in range(steps):
        listener.step()
    listener.core.cancel(sequence)
    listener.run()
    memory = listener.ends[sequence].snapshot
    assert len(memory.pending) == len(prompt) - prefill.consumed
    assert prefill.consumed > steps * (MAX_TOKENS - MAX_ROWS)
    tokens, _ = listener.one(memory.pending, greedy(4), snapshot=memory)
    assert tokens == greedy_oracle(prompt, 4)


def test_streams_wait_for_so_many_ids_and_no_more(runner, prefill, greedy_oracle):
    listener = Listener(runner, prefill)
    streams = [listener.add([place], greedy(60)) for place in range(3)]
    listener.step()
    prompts = [random_ids(700, seed) for seed in range(MAX_ROWS + 2)]
    sequences = [listener.add(prompt, greedy(3)) for prompt in prompts]
    while not all(stream in listener.ends for stream in streams):
        before, counts = prefill.consumed, [len(listener.tokens[stream]) for stream in streams]
        listener.step()
        assert prefill.consumed - before <= MAX_TOKENS
        assert [len(listener.tokens[stream]) for stream in streams] == [count + 1 for count in counts]
    assert prefill.consumed > 50 * MAX_TOKENS / 2
    before = prefill.consumed
    listener.step()  # nobody waits for a token now
    assert MAX_TOKENS < prefill.consumed - before <= MAX_TOKENS_ALONE
    listener.run()
    assert [listener.tokens[sequence] for sequence in sequences] == [greedy_oracle(prompt, 3) for prompt in prompts]
    assert [listener.tokens[stream] for stream in streams] == [greedy_oracle([place], 60) for place in range(3)]
    assert max(map(len, prefill.calls)) == MAX_ROWS


def test_penalty_knows_the_ids_that_prefill_consumed(make_runner, prefill):
    prompt = [place % 11 for place in range(CHUNK + 40)]  # every id that is likely to be repeated comes early
    sampling = SamplingParameters(max_tokens=60, temperature=0.0, repetition_penalty=3.0)
    tokens, _ = Listener(make_runner(), prefill).one(prompt, sampling)
    assert tokens == Listener(make_runner()).one(prompt, sampling)[0]
    assert tokens != Listener(make_runner()).one(prompt, greedy(60))[0]


def test_scores_and_readings_of_each_id_take_steps(runner, prefill, score_oracle):
    listener, ids = Listener(runner, prefill), random_ids(CHUNK + 9)
    scored = listener.add(ids, ScoreParameters())
    listener.add(ids, ReadParameters(np.array(ids)))
    listener.add(ids, ReadParameters(columns=np.array([3, 1])))
    listener.run()
    assert not prefill.calls
    np.testing.assert_allclose(listener.ends[scored].result.logprobs, score_oracle(ids), atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("last", [1, 40, CHUNK + 1])
def test_last_outputs_are_read_after_a_prefilled_history(runner, prefill, outputs_oracle, length, last):
    ids = random_ids(length)
    _, end = Listener(runner, prefill).one(ids, ReadParameters(last=last), keep_state=True)
    assert end.result.values is None
    np.testing.assert_array_equal(end.result.outputs, outputs_oracle(ids)[-last:])
    assert (prefill.consumed > 0) == (length - last >= MIN_TOKENS)
    assert len(end.snapshot.pending) == 0
    _, other = Listener(runner).one(ids, ReadParameters(last=last), keep_state=True)
    assert same_snapshot(end.snapshot, other.snapshot)


def test_prefill_that_raises_leaves_its_row_to_steps(runner, prefill, greedy_oracle):
    def fault(ids):
        if 22 in ids:
            raise ValueError("no such id")

    prefill.fault = fault
    listener = Listener(runner, prefill)
    prompts = [[place] * 300 for place in (20, 21, 22, 19)]
    sequences = [listener.add(prompt, greedy(6)) for prompt in prompts]
    listener.run()
    assert [listener.tokens[sequence] for sequence in sequences] == [greedy_oracle(prompt, 6) for prompt in prompts]
    assert sum(22 in ids for ids in prefill.calls) == 2  # among others, then alone
    assert runner.steps > 300


def test_row_that_no_graph_can_run_fails_alone(runner, prefill, greedy_oracle):
    def fault(ids):
        if 22 in ids:
            raise ValueError("bad id")

    prefill.fault = fault
    runner.fault = lambda state, token: ValueError("bad id") if token == 22 else None
    listener = Listener(runner, prefill)
    bad = listener.add([*range(20), 22, *range(20)], greedy(5))
    good = listener.add([3] * 200, greedy(5))
    listener.run()
    assert listener.ends[bad].reason is FinishReason.FAILED
    assert "bad id" in listener.ends[bad].detail
    expected = greedy_oracle([3] * 200, 5)
    assert listener.tokens[good] == expected[: len(listener.tokens[good])]
    assert listener.tokens[good]


def test_row_whose_outputs_are_not_finite_fails_alone(runner, prefill, greedy_oracle):
    prompt = random_ids(90)
    runner.fault = lambda state, token: np.nan if state == 21 else None
    listener = Listener(runner, prefill)
    good = listener.add(prompt, greedy(5))
    bad = listener.add([20, 5], greedy(5))
    listener.run()
    assert listener.ends[bad].detail == NOT_FINITE
    assert listener.tokens[good] == greedy_oracle(prompt, 5)


def test_random_churn_with_prefill_changes_nobody(runner, prefill, greedy_oracle):
    random = np.random.default_rng(9)

    def fault(ids):
        if sum(ids) % 211 == 3:
            raise ValueError("fault")

    prefill.fault = fault
    listener, wanted = Listener(runner, prefill), {}
    for _ in range(400):
        if random.random() < 0.5 and len(listener.core.scheduler.waiting) < 5:
            prompt = random.integers(0, 23, random.integers(1, 500)).tolist()
            count = int(random.integers(1, 25))
            wanted[listener.add(prompt, greedy(count))] = (prompt, count)
        if random.random() < 0.1 and listener.core.scheduler.running:
            listener.core.cancel(random.choice([sequence.id for sequence in listener.core.scheduler.running]))
        listener.step()
    listener.run()
    assert {end.reason for end in listener.ends.values()} == {FinishReason.LENGTH, FinishReason.CANCELLED}
    for sequence, (prompt, count) in wanted.items():
        expected = greedy_oracle(prompt, count)
        assert listener.tokens[sequence] == expected[: len(listener.tokens[sequence])]
        if listener.ends[sequence].reason is FinishReason.LENGTH:
            assert len(listener.tokens[sequence]) == count
    assert prefill.consumed > 10_000
    assert not listener.core.prefill.pending


def test_report_counts_prefill_as_prompt_and_as_runner(runner, prefill):
    ticks = iter(range(100))
    core = EngineCore(runner, 4, clock=lambda: float(next(ticks)), prefill=prefill)
    core.add(0, Request(np.array([1] * 60), greedy(2)))
    first, second = core.step().report, core.step().report
    assert (first.prompt_tokens, first.consumed_ahead, first.generated_tokens, first.phase) == (1, 59, 1, "mixed")
    assert (first.step_seconds, first.runner_seconds) == (5.0, 2.0)
    assert (second.prompt_tokens, second.phase, second.runner_seconds) == (0, "decode", 1.0)


def test_check_keeps_a_prefill_that_agrees(runner, prefill, greedy_oracle):
    listener = Listener(runner, prefill)
    listener.core.prefill.check(runner)
    prefill.calls.clear()
    assert listener.one([3] * 90, greedy(4))[0] == greedy_oracle([3] * 90, 4)
    assert prefill.calls


def test_check_does_without_a_prefill_that_differs(runner, prefill, greedy_oracle, caplog):
    class Nearly(FakePrefill):
        def __call__(self, fed, states):
            after = prefill(fed, states)
            return {**after, "state.a": np.nextafter(after["state.a"], np.float32(np.inf))}

    listener = Listener(runner, Nearly())
    with caplog.at_level(logging.WARNING, "carousel.engine"):
        listener.core.prefill.check(runner)
    assert listener.core.prefill.refusal == caplog.messages[0]
    assert "prompts are fed step by step" in caplog.text
    prefill.calls.clear()
    assert listener.one([3] * 90, greedy(4))[0] == greedy_oracle([3] * 90, 4)
    assert not prefill.calls


def test_check_refuses_a_prefill_that_cannot_run(runner, prefill):
    def fault(ids):
        raise ValueError("no such kernel")

    prefill.fault = fault
    with pytest.raises(RunnerBroken, match="no such kernel"):
        EngineCore(runner, 2, prefill=prefill).prefill.check(runner)


def test_prompts_that_come_after_prefill_was_given_up_take_steps(runner, prefill, greedy_oracle):
    listener = Listener(runner, prefill)
    early = listener.add(random_ids(90), greedy(4))
    listener.core.prefill.give_up()
    late = listener.add(random_ids(80), greedy(4))
    assert not listener.core.prefill.advance(MAX_TOKENS)
    listener.run()
    assert listener.tokens[early] == greedy_oracle(random_ids(90), 4)
    assert listener.tokens[late] == greedy_oracle(random_ids(80), 4)
    assert not prefill.calls
