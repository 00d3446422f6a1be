"""The engine's core on a runner whose every answer is known: nobody's result may depend on who else is there."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, ReadParameters, SamplingParameters, ScoreParameters
from carousel.service.engine.port import Request
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE
from carousel.service.engine.session import RunnerBroken


class Listener:
    """Steps a core and keeps what each sequence was told."""

    def __init__(self, runner, max_rows=8):
        self.core = EngineCore(runner, max_rows)
        self.tokens, self.ends, self.reports, self.joined = {}, {}, [], []

    def add(self, prompt, head, **fields):
        sequence = len(self.tokens)
        self.tokens[sequence] = []
        self.core.add(sequence, Request(np.array(prompt), head, **fields))
        return sequence

    def step(self):
        with np.errstate(all="ignore"):
            self.note(self.core.step())

    def note(self, output):
        if output.batch:
            for sequence, token in zip(output.batch.ids, output.batch.tokens, strict=True):
                assert sequence not in self.ends, "a token after the end"
                self.tokens[sequence].append(token)
        self.joined += [id for id, _, _ in output.joined]
        for sequence, event in output.finished:
            assert sequence not in self.ends, "two ends"
            self.ends[sequence] = event
        if output.report:
            self.reports.append(output.report)

    def run(self, limit=100_000):
        while not self.core.idle:
            self.step()
            limit -= 1
            assert limit, "the engine does not come to rest"

    def one(self, prompt, head, **fields):
        sequence = self.add(prompt, head, **fields)
        self.run()
        return self.tokens[sequence], self.ends[sequence]


def greedy(max_tokens=5, **fields):
    return SamplingParameters(max_tokens=max_tokens, temperature=0.0, **fields)


def assert_clean(core):
    """Every row is free and holds nothing."""
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    everything = slice(core.scheduler.max_rows)
    assert not any(array.any() for array in core._pool.before(everything).values())


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize("steps", [1, 2, CHUNK + 3])
def test_step_generates_what_the_oracle_generates(runner, greedy_oracle, length, steps):
    prompt = np.random.default_rng(length).integers(0, 23, length).tolist()
    tokens, end = Listener(runner).one(prompt, greedy(steps))
    assert tokens == greedy_oracle(prompt, steps)
    assert end.reason is FinishReason.LENGTH


def test_buffered_sequence_says_what_it_would_have_streamed(runner, greedy_oracle):
    listener = Listener(runner)
    buffered = [listener.add([place], greedy(3 * place), buffered=True) for place in range(1, 5)]
    streamed = listener.add([3], greedy(9))
    listener.run()
    assert listener.tokens[streamed] == greedy_oracle([3], 9)
    for place, sequence in enumerate(buffered, 1):
        assert listener.tokens[sequence] == []
        assert listener.ends[sequence].reason is FinishReason.LENGTH
        sampled = listener.ends[sequence].result
        assert list(sampled.tokens) == greedy_oracle([place], 3 * place)
        assert all(logprob <= 0 for logprob in sampled.logprobs)
        assert len(sampled.logprobs) == 3 * place
        assert sampled.attention == ()
    assert sum(report.generated_tokens for report in listener.reports) == 3 + 6 + 9 + 12 + 9
    assert_clean(listener.core)


def test_step_takes_prefill_decode_and_scores_forward_together(runner, greedy_oracle):
    listener = Listener(runner)
    long = listener.add(list(range(20)), greedy(3))
    short = listener.add([5], greedy(30))
    scored = listener.add([1, 2, 3, 4], ScoreParameters())
    listener.run()
    assert listener.tokens[long] == greedy_oracle(list(range(20)), 3)
    assert listener.tokens[short] == greedy_oracle([5], 30)
    assert len(listener.ends[scored].result.logprobs) == 3
    assert runner.steps == 30  # and not the sum of all lengths
    assert sum(report.prompt_tokens for report in listener.reports) == 20 + 1 + 3
    assert sum(report.generated_tokens for report in listener.reports) == 33


def test_step_samples_the_same_alone_and_in_company(runner):
    sampling = [SamplingParameters(max_tokens=40 + i, seed=i, top_k=i % 5, top_p=1 - i % 3 / 4) for i in range(64)]
    prompts = [[i % 23] * (1 + i % 7) for i in range(64)]
    together = Listener(runner, max_rows=64)
    sequences = [together.add(prompt, each) for prompt, each in zip(prompts, sampling, strict=True)]
    together.run()
    for sequence, prompt, each in list(zip(sequences, prompts, sampling, strict=True))[::9]:
        alone, _ = Listener(runner).one(prompt, each)
        assert together.tokens[sequence] == alone


def test_score_weighs_every_id_but_the_first(runner, score_oracle):
    prompt = np.random.default_rng(1).integers(0, 23, 2 * CHUNK + 2).tolist()
    _, end = Listener(runner).one(prompt, ScoreParameters())
    np.testing.assert_allclose(end.result.logprobs, score_oracle(prompt), atol=1e-5)


def test_sequences_wait_for_rows_and_are_served_in_order(runner, greedy_oracle):
    listener = Listener(runner, max_rows=2)
    sequences = [listener.add([i], greedy(3)) for i in range(7)]
    listener.run()
    assert [listener.tokens[sequence] for sequence in sequences] == [greedy_oracle([i], 3) for i in range(7)]
    assert listener.joined == sequences
    assert max(report.rows for report in listener.reports) == 2


def test_cancel_frees_the_row_before_the_next_step(runner, greedy_oracle):
    listener = Listener(runner)
    gone, stays = listener.add([1], greedy(50)), listener.add([2], greedy(50))
    listener.step()
    listener.core.cancel(gone)
    assert [sequence.id for sequence in listener.core.scheduler.running] == [stays]
    listener.run()
    assert listener.ends[gone].reason is FinishReason.CANCELLED
    assert listener.tokens[stays] == greedy_oracle([2], 50)
    assert_clean(listener.core)


def test_cancel_of_a_waiting_sequence_ends_it(runner):
    listener = Listener(runner, max_rows=1)
    listener.add([1], greedy(3))
    waiting = listener.add([2], greedy(3))
    listener.core.cancel(waiting)
    listener.core.cancel(waiting)
    listener.run()
    assert listener.ends[waiting].reason is FinishReason.CANCELLED
    assert listener.tokens[waiting] == []


def test_stop_ends_at_exactly_the_token(runner, greedy_oracle):
    expected = greedy_oracle([3], 20)
    tokens, end = Listener(runner).one([3], greedy(20), stop=lambda token: token == expected[6])
    assert tokens == expected[: expected.index(expected[6]) + 1]
    assert end.reason is FinishReason.STOP


def test_end_token_ends_its_own_sequence_at_once(runner, greedy_oracle):
    expected = greedy_oracle([3], 20)
    end = expected[6]
    listener = Listener(runner)
    ended, other = listener.add([3], greedy(20), end=end), listener.add([3], greedy(20))
    listener.run()
    assert listener.tokens[ended] == expected[: expected.index(end) + 1]
    assert listener.ends[ended].reason is FinishReason.STOP
    assert listener.tokens[other] == expected
    assert listener.ends[other].reason is FinishReason.LENGTH
    assert_clean(listener.core)


def test_end_token_may_be_the_last_that_is_allowed_and_the_vocabularys_first(runner, greedy_oracle):
    prompt, length = next(
        ([start], tokens.index(0) + 1)
        for start in range(1, runner.output_size)
        if 0 in (tokens := greedy_oracle([start], 30))
    )
    tokens, end = Listener(runner).one(prompt, greedy(length), end=0)
    assert (tokens[-1], len(tokens), end.reason) == (0, length, FinishReason.STOP)


class Panic(BaseException):
    """As pyo3's panics are."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_stop_that_raises_fails_its_own_sequence(runner, greedy_oracle, error):
    def stop(token):
        raise error("no such id")

    listener = Listener(runner)
    bad, good = listener.add([1], greedy(9), stop=stop), listener.add([2], greedy(9), stop=lambda token: False)
    listener.run()
    assert listener.ends[bad].reason is FinishReason.FAILED
    assert "no such id" in listener.ends[bad].detail
    assert listener.tokens[good] == greedy_oracle([2], 9)
    assert_clean(listener.core)


def test_score_of_an_impossible_token_is_minus_infinity(runner):
    core = EngineCore(runner, 1)
    core.add(0, Request(np.array([1, 2, 3]), ScoreParameters()))
    bind = runner.bind

    def masking(arrays):
        step = bind(arrays)

        def run():
            step()
            arrays.outputs["logits"][:, 2] = -np.inf

        return run

    runner.bind = masking
    with np.errstate(all="ignore"):
        core.step()
        (_, end), *_ = core.step().finished
    assert end.result.logprobs[0] == -np.inf
    assert np.isfinite(end.result.logprobs[1])


@pytest.mark.parametrize("cut", [1, 4, CHUNK, CHUNK + 1])
def test_snapshot_goes_on_as_if_never_interrupted(runner, greedy_oracle, cut):
    whole = greedy_oracle([7, 8], CHUNK + 20)
    listener = Listener(runner)
    first, end = listener.one([7, 8], greedy(cut), keep_state=True)
    memory = end.snapshot
    second, _ = listener.one(memory.pending.tolist(), greedy(CHUNK + 20 - cut), snapshot=memory)
    assert first + second == whole


def test_snapshot_of_a_cancelled_prompt_holds_what_was_not_consumed(runner, greedy_oracle):
    prompt = np.random.default_rng(2).integers(0, 23, CHUNK + 40).tolist()
    for steps in (1, 30, CHUNK, CHUNK + 5):
        listener = Listener(runner)
        sequence = listener.add(prompt, greedy(5), keep_state=True)
        for _ in range(steps):
            listener.step()
        listener.core.cancel(sequence)
        listener.run()
        memory = listener.ends[sequence].snapshot
        assert len(memory.pending) == len(prompt) - steps
        tokens, _ = listener.one(memory.pending.tolist(), greedy(5), snapshot=memory)
        assert tokens == greedy_oracle(prompt, 5)


def test_a_row_that_raises_fails_alone(runner, greedy_oracle):
    runner.fault = lambda state, token: ValueError("bad row") if token == 22 else None
    listener = Listener(runner)
    good = [listener.add([i, i + 1, i + 2], greedy(9)) for i in range(3)]
    bad = listener.add([4, 22, 4], greedy(9))
    listener.run()
    assert listener.ends[bad].reason is FinishReason.FAILED
    assert "bad row" in listener.ends[bad].detail
    for i, sequence in enumerate(good):
        expected = greedy_oracle([i, i + 1, i + 2], 9)
        if 22 in expected[:-1]:
            assert listener.ends[sequence].reason is FinishReason.FAILED
        else:
            assert listener.tokens[sequence] == expected
    assert_clean(listener.core)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("scores", [False, True])
def test_a_row_of_nan_fails_alone_and_frees_its_row(runner, greedy_oracle, poison, scores):
    runner.fault = lambda state, token: poison if state == 21 else None  # the state after eating 20
    listener = Listener(runner)
    good = listener.add([1, 2], greedy(30))
    bad = listener.add([20, 5, 6], ScoreParameters() if scores else greedy(9))
    second = listener.add([20, 5], greedy(9))
    listener.step()
    listener.step()
    assert listener.ends[second].detail == NOT_FINITE
    listener.run()
    assert listener.tokens[good] == greedy_oracle([1, 2], 30)
    assert (listener.ends[bad].detail == NOT_FINITE) == scores  # a prompt's logits are looked at only when weighed
    assert_clean(listener.core)


def test_a_runner_that_fails_on_everything_is_broken(runner):
    listener = Listener(runner)
    sequence = listener.add([1], greedy(5))
    listener.step()
    runner.fault = lambda state, token: OSError("device lost")
    with pytest.raises(RunnerBroken, match="device lost"):
        listener.core.step()
    listener.note(listener.core.fail_all("broken"))
    assert listener.ends[sequence].detail == "broken"


def test_a_step_that_fails_for_every_sequence_does_not_break_a_sound_runner(runner, greedy_oracle):
    runner.fault = lambda state, token: ValueError("bad") if token == 11 else None
    listener = Listener(runner)
    bad = [listener.add([11], greedy(5)) for _ in range(3)]
    listener.run()
    assert all(listener.ends[sequence].reason is FinishReason.FAILED for sequence in bad)
    runner.fault = lambda state, token: None
    assert listener.one([1], greedy(5))[0] == greedy_oracle([1], 5)


def test_random_churn_leaves_no_row_and_changes_nobody(runner, greedy_oracle):
    random = np.random.default_rng(5)
    runner.fault = lambda state, token: (
        ValueError("fault") if state % 997 == 3 else np.nan if state % 991 == 5 else None
    )
    listener, wanted = Listener(runner, max_rows=16), {}
    for _ in range(3_000):
        if random.random() < 0.5 and len(listener.core.scheduler.waiting) < 10:
            prompt = random.integers(0, 23, random.integers(1, 9)).tolist()
            count = int(random.integers(1, 25))
            wanted[listener.add(prompt, greedy(count), keep_state=bool(random.random() < 0.2))] = (prompt, count)
        if random.random() < 0.1 and listener.core.scheduler.running:
            listener.core.cancel(random.choice([sequence.id for sequence in listener.core.scheduler.running]))
        listener.step()
    listener.run()
    assert set(listener.ends) == set(wanted)
    reasons = {end.reason for end in listener.ends.values()}
    assert reasons == {FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.FAILED}
    for sequence, (prompt, count) in wanted.items():
        expected = greedy_oracle(prompt, count)
        assert listener.tokens[sequence] == expected[: len(listener.tokens[sequence])]
        if listener.ends[sequence].reason is FinishReason.LENGTH:
            assert listener.tokens[sequence] == expected
    assert_clean(listener.core)


def test_report_counts_rows_and_tells_the_runner_from_the_engine(runner):
    ticks = iter(range(100))
    core = EngineCore(runner, 4, clock=lambda: float(next(ticks)))
    core.add(0, Request(np.array([1, 2]), greedy(2)))
    first, second = core.step().report, core.step().report
    assert (first.rows, first.prompt_tokens, first.generated_tokens, first.phase) == (1, 1, 0, "prefill")
    assert (second.prompt_tokens, second.generated_tokens, second.phase) == (1, 1, "mixed")
    assert core.step().report.phase == "decode"
    assert (first.step_seconds, first.runner_seconds) == (3.0, 1.0)


def test_alternatives_come_with_the_token(runner):
    core = EngineCore(runner, 4)
    core.add(0, Request(np.array([1]), greedy(1, alternatives=3)))
    core.add(1, Request(np.array([1]), greedy(1)))
    batch = core.step().batch
    assert list(batch.alternatives) == [0]
    assert batch.alternatives[0][0].token == batch.tokens[0]
    assert batch.alternatives[0][0].logprob == pytest.approx(batch.logprobs[0])


@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, CHUNK + 2])
def test_snapshot_of_the_prompt_forgets_what_was_sampled(runner, greedy_oracle, score_oracle, length):
    prompt = np.random.default_rng(length).integers(0, 23, length).tolist()
    listener = Listener(runner)
    tokens, end = listener.one(prompt, greedy(3), keep_state=True, keep_prompt=True)
    assert tokens == greedy_oracle(prompt, 3)
    assert end.snapshot.pending.tolist() == prompt[-1:]
    more = [*end.snapshot.pending.tolist(), 4, 7]
    _, scored = listener.one(more, ScoreParameters(), snapshot=end.snapshot)
    np.testing.assert_allclose(scored.result.logprobs, score_oracle([*prompt, 4, 7])[-2:], atol=1e-5)


def test_score_resumed_weighs_the_first_new_id(runner, score_oracle):
    prompt = np.random.default_rng(6).integers(0, 23, CHUNK + 20).tolist()
    listener = Listener(runner)
    _, first = listener.one(prompt[:50], ScoreParameters(), keep_state=True)
    resumed = [*first.snapshot.pending.tolist(), *prompt[50:]]
    _, rest = listener.one(resumed, ScoreParameters(), snapshot=first.snapshot, keep_state=True)
    np.testing.assert_allclose([*first.result.logprobs, *rest.result.logprobs], score_oracle(prompt), atol=1e-5)


def test_readout_of_a_row_that_is_not_finite_fails_alone(runner, outputs_oracle):
    runner.fault = lambda state, token: np.nan if token == 11 else None
    listener = Listener(runner)
    sound = listener.add([1] * 9, ReadParameters(np.arange(9), np.array([2]), last=3))
    bad = listener.add([1, 1, 11, 1], ReadParameters(np.arange(4), np.array([2]), last=3))
    listener.run()
    assert listener.ends[bad].detail == NOT_FINITE
    assert listener.ends[bad].result is None
    expected = outputs_oracle([1] * 9)
    reading = listener.ends[sound].result
    np.testing.assert_array_equal(reading.values, [expected[place][place] for place in range(9)])
    np.testing.assert_array_equal(reading.curve[:, 0], [row[2] for row in expected])
    np.testing.assert_array_equal(reading.outputs, expected[-3:])
    assert_clean(listener.core)


def test_readouts_of_rows_that_move_keep_their_records(runner):
    random = np.random.default_rng(8)
    together = Listener(runner, max_rows=5)
    histories = [random.integers(0, 23, random.integers(1, 2 * CHUNK)) for _ in range(30)]
    sequences = [together.add(ids, ReadParameters(ids, np.array([5, 1, 7]), last=40)) for ids in histories]
    together.run()
    for ids, sequence in zip(histories, sequences, strict=True):
        _, alone = Listener(runner).one(ids, ReadParameters(ids, np.array([5, 1, 7]), last=40))
        for name in ("values", "curve", "outputs"):
            np.testing.assert_array_equal(getattr(together.ends[sequence].result, name), getattr(alone.result, name))
