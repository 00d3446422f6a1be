"""The sampler against closed forms and against a slow sampler that works one row at a time in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.rows import plan
from carousel.service.engine.rows.sampling_table import SamplingTable
from carousel.service.engine.rows.table import RowTable
from carousel.service.engine.sampling.sampler import Sampler


def sample(logits, table):
    """Sample every row, of a copy: logits may be overwritten."""
    return Sampler(logits.shape[1]).sample(logits.copy(), table, np.ones(len(logits), np.bool_))


def make_table(vocabulary, parameters, prompts=None):
    table = SamplingTable(RowTable(len(parameters)), len(parameters), vocabulary)
    for row, sampling in enumerate(parameters):
        table.acquire(row, sampling, np.zeros(0, np.int64))
    if prompts is not None:
        for row, tokens in enumerate(prompts):
            if table.seen is not None:
                table.seen[row, tokens] = True
    return table


def kept_by(logits, sampling, seen=()):
    """The weights that survive, by the definitions, in float64. <float64>[V]"""
    logits = logits.astype(np.float64).copy()
    for token in seen:
        penalty = sampling.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(weights):
        weights[weights < np.sort(weights)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        mass = np.cumsum(weights[order]) / weights.sum()
        weights[order[np.searchsorted(mass, sampling.top_p) + 1 :]] = 0
    weights[weights < sampling.min_p] = 0
    return weights


def draw_many(logits, sampling, uniforms, seen=()):
    """The tokens that each of `uniforms` gives, one row each."""
    rows = len(uniforms)
    table = make_table(len(logits), [sampling] * rows, [list(seen)] * rows)
    table.uniforms[:, 0] = uniforms
    return sample(np.tile(logits, (rows, 1)), table).tokens


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(),
        SamplingParameters(temperature=0.5),
        SamplingParameters(temperature=3.0),
        SamplingParameters(top_k=5),
        SamplingParameters(top_p=0.8),
        SamplingParameters(min_p=0.1),
        SamplingParameters(top_k=20, top_p=0.7, min_p=0.02, temperature=1.3),
    ],
)
@pytest.mark.parametrize("vocabulary", [3, 127, 128, 129, 400])
def test_sample_frequencies_are_the_truncated_distribution(sampling, vocabulary):
    logits = np.random.default_rng(vocabulary).standard_normal(vocabulary).astype(np.float32) * 2
    expected = kept_by(logits, sampling)
    expected /= expected.sum()
    grid = (np.arange(20_000) + 0.5) / 20_000
    seen = np.bincount(draw_many(logits, sampling, grid), minlength=vocabulary) / len(grid)
    np.testing.assert_allclose(seen, expected, atol=1.01 / len(grid) + 1e-6)


def test_sample_repetition_penalty_changes_seen_tokens_only():
    logits = np.array([2.0, 1.9, -1.0, -1.1, 0.5], np.float32)
    sampling = SamplingParameters(repetition_penalty=1.7)
    expected = kept_by(logits, sampling, seen=(0, 2))
    grid = (np.arange(10_000) + 0.5) / 10_000
    seen = np.bincount(draw_many(logits, sampling, grid, seen=(0, 2)), minlength=5) / len(grid)
    np.testing.assert_allclose(seen, expected / expected.sum(), atol=2e-4)


def test_sample_greedy_takes_the_largest_after_penalty():
    logits = np.array([[2.0, 1.9, 0.0]], np.float32)
    greedy = SamplingParameters(temperature=0.0, repetition_penalty=1.5)
    assert sample(logits, make_table(3, [greedy])).tokens.tolist() == [0]
    assert sample(logits, make_table(3, [greedy], [[0]])).tokens.tolist() == [1]


def test_sample_top_k_keeps_ties_together():
    logits = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    drawn = draw_many(logits, SamplingParameters(top_k=1), np.linspace(0, 0.999, 50))
    assert set(drawn.tolist()) == {0, 1, 2}


def test_sample_never_draws_an_impossible_token():
    logits = np.full(300, -np.inf, np.float32)
    logits[[7, 150, 299]] = 0.0
    drawn = draw_many(logits, SamplingParameters(), np.array([0.0, 0.3333, 0.34, 0.67, 1 - 2**-53]))
    assert drawn.tolist() == [7, 7, 150, 299, 299]


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-6, 1e30])
def test_sample_survives_extreme_temperatures(temperature):
    logits = np.array([-3.0, 50.0, 49.0], np.float32)
    tokens = draw_many(logits, SamplingParameters(temperature=temperature), np.array([0.0, 0.5, 0.999]))
    assert tokens.tolist() == ([0, 1, 2] if temperature > 1 else [1, 1, 1])


def test_sample_logprob_is_the_models_own():
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    samples = sample(logits, make_table(3, [SamplingParameters(temperature=0.1, top_k=1)]))
    assert samples.logprobs[0] == pytest.approx(3.0 - np.log(np.exp([1.0, 2.0, 3.0]).sum()), abs=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the engine's thread ignores them
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_sample_reports_rows_that_are_not_finite(poison):
    logits = np.zeros((3, 200), np.float32)
    logits[1, 5] = poison
    parameters = [SamplingParameters(top_p=0.9), SamplingParameters(top_k=3, top_p=0.5), SamplingParameters()]
    samples = sample(logits, make_table(200, parameters))
    assert samples.finite.tolist() == [True, False, True]
    assert (samples.tokens >= 0).all()
    assert (samples.tokens < 200).all()


parameters_strategy = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 310),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**63),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rows_of_a_block", [3, 16, 256])
@settings(max_examples=25, deadline=None)
@given(parameters=st.lists(parameters_strategy, min_size=2, max_size=40), seed=st.integers(0, 2**32 - 1))
def test_sample_does_not_depend_on_neighbours_in_any_bit(rows_of_a_block, parameters, seed):
    vocabulary, n = 300, len(parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BLOCK_WEIGHTS", rows_of_a_block * vocabulary)
        compare_with_each_alone(vocabulary, n, parameters, seed)


def compare_with_each_alone(vocabulary, n, parameters, seed):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((n, vocabulary)).astype(np.float32) * 4
    logits[0, ::7] = logits[0, 3]  # ties
    logits[n // 2] = random.choice([np.nan, 1e30, np.inf])  # a neighbour from hell
    seen = [random.integers(0, vocabulary, 20) for _ in parameters]
    together = sample(logits, make_table(vocabulary, parameters, seen))
    for row, sampling in enumerate(parameters):
        alone = sample(logits[row : row + 1], make_table(vocabulary, [sampling], [seen[row]]))
        assert alone.finite[0] == together.finite[row]
        if alone.finite[0]:
            assert alone.tokens[0] == together.tokens[row]
            assert alone.logprobs[0].tobytes() == together.logprobs[row].tobytes()


@pytest.mark.parametrize("sampling", [SamplingParameters(), SamplingParameters(top_k=7, top_p=0.9)])
def test_sample_in_place_changes_no_bit_and_spares_logits_that_are_needed_again(sampling):
    logits = np.random.default_rng(2).standard_normal((9, 300)).astype(np.float32) * 4
    needed = replace(sampling, alternatives=3)
    found = []
    for parameters, overwritten in ((sampling, not sampling.top_k), (needed, False)):
        block = logits.copy()
        found.append(Sampler(300).sample(block, make_table(300, [parameters] * 9), np.ones(9, np.bool_)))
        assert (block.tobytes() != logits.tobytes()) == overwritten
    assert found[0].tokens.tobytes() == found[1].tokens.tobytes()
    assert found[0].logprobs.tobytes() == found[1].logprobs.tobytes()


def test_sample_logprob_of_the_improbable_is_exact_in_every_block():
    logits = np.array([[-80.0, 0.0]], np.float32)
    for others in ([], [SamplingParameters(temperature=0.0)]):
        table = make_table(2, [SamplingParameters(), *others])
        table.uniforms[0, 0] = 0.0
        samples = sample(np.tile(logits, (1 + len(others), 1)), table)
        assert samples.tokens[0] == 0
        assert samples.logprobs[0] == np.float32(-80.0)


def test_score_is_the_log_softmax_of_the_target():
    logits = np.random.default_rng(0).standard_normal((37, 150)).astype(np.float32) * 5
    rows, targets = np.arange(0, 37, 2), np.arange(19) * 7
    exact = logits.astype(np.float64)[rows]
    exact = exact[np.arange(19), targets] - np.log(np.exp(exact).sum(axis=1))
    np.testing.assert_allclose(Sampler(150).score(logits, rows, targets), exact, atol=2e-6)


def best_of(logits, count):
    """Of a row alone, and the same in a block of others."""
    (alone,) = Sampler(len(logits)).alternatives(logits[None], np.zeros(1, np.intp), np.array([count]))
    beside = np.stack([logits[::-1], logits, logits * 2])
    assert Sampler(len(logits)).alternatives(beside, np.array([0, 1]), np.array([1, count]))[1] == alone
    return alone


def test_alternatives_leave_out_the_impossible():
    assert [one.token for one in best_of(np.array([0.0, -np.inf, 1.0], np.float32), 3)] == [2, 0]


def test_sample_leaves_blocks_alone_that_emit_nothing(monkeypatch):
    monkeypatch.setattr(plan, "BLOCK_WEIGHTS", 16 * 50)  # blocks of 16 rows
    logits = np.full((40, 50), np.nan, np.float32)  # would be reported, were it looked at
    logits[20] = np.arange(50)
    emits = np.zeros(40, np.bool_)
    emits[20] = True
    samples = Sampler(50).sample(logits, make_table(50, [SamplingParameters(temperature=0.0)] * 40), emits)
    assert samples.tokens[20] == 49
    assert samples.finite[:16].all()
    assert samples.finite[32:].all()


def test_alternatives_are_the_best_first_and_ties_by_id():
    logits = np.array([0.0, 2.0, 1.0, 2.0, -1.0], np.float32)
    best = best_of(logits, 3)
    assert [one.token for one in best] == [1, 3, 2]
    assert sum(np.exp(one.logprob) for one in best_of(logits, 99)) == pytest.approx(1.0)
