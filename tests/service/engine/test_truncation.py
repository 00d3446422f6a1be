"""Truncated draws against slow ones that put all weights of a row in order, token for token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.service.engine.rows.plan import LargestOnly, MassOnly
from carousel.service.engine.sampling import nucleus
from carousel.service.engine.sampling.nucleus import NucleusDraw
from carousel.service.engine.sampling.truncation import FEW_ROWS, draw_from_largest

SIZES = [1, 3, 37, 300, 1023, 1024, 1061, 5157, 10_000]


def logits_of(*deviations, size, seed=0):
    """A row for each deviation, from flat (0) to all on a few."""
    rng = np.random.default_rng([seed, size])
    return (rng.standard_normal((len(deviations), size)) * np.array(deviations)[:, None]).astype(np.float32)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def of_largest(rows, top_k, top_p=1.0, min_p=0.0, temperature=1.0):
    return LargestOnly(
        np.arange(rows),
        np.full((rows, 1), 1.0 / temperature),
        np.full(rows, top_k),
        np.full(rows, top_p) if top_p < 1.0 else None,
        np.full(rows, min_p, np.float32) if min_p else None,
    )


def of_mass(rows, top_p=1.0, min_p=0.0):
    limit = np.full(rows, min_p, np.float32) if min_p else None
    return MassOnly(np.arange(rows), None, np.full(rows, top_p), limit)


def slow_draw(weights, uniform, top_k=0, top_p=1.0, min_p=0.0, *, whole=None):
    """The token that one row draws, by the definition. <float64>[V]; `whole` is the mass that top-p is a share of."""
    ordered = -np.sort(-weights)
    threshold = ordered[top_k - 1] if top_k else 0.0
    kept = np.where(ordered >= threshold, ordered, 0.0).cumsum()
    if top_p < 1.0:
        reached = int((kept < top_p * (kept[-1] if whole is None else whole)).sum())
        threshold = max(threshold, ordered[min(reached, len(ordered) - 1)])
    threshold = max(threshold, np.float32(min_p) * ordered[0])
    mass = np.where(weights >= threshold, weights, 0.0).cumsum()
    return int((mass <= min(uniform * mass[-1], (1 - 2.0**-52) * mass[-1])).sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_k", [1, 2, 5, 40, 700])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.9, 0.0), (0.5, 0.1), (1.0, 0.3)])
def test_largest_are_drawn_as_the_definition_draws_them(size, top_k, top_p, min_p):
    logits, top_k = logits_of(0.0, 0.01, 0.5, 3.0, 20.0, size=size), min(top_k, size)
    logits[3] = np.round(logits[3], 1)  # ties
    for uniform in np.random.default_rng(size).random(20):
        drawn = draw_from_largest(logits, of_largest(5, top_k, top_p, min_p, 0.8), np.full(5, uniform))
        for row, token in zip(logits, drawn, strict=True):
            weights = np.exp((row - row.max()) * (1.0 / 0.8))
            assert token == slow_draw(weights, uniform, top_k, top_p, min_p)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("top_p", "min_p"), [(0.05, 0.0), (0.5, 0.0), (0.95, 0.0), (0.99999, 0.0), (0.9, 0.05), (0.99, 0.3)]
)
def test_a_nucleus_is_drawn_from_as_the_definition_draws(size, top_p, min_p):
    weights = softmax(logits_of(0.0, 0.01, 0.5, 2.0, 5.0, 20.0, size=size))
    weights[2] = np.round(weights[2], 5)  # ties
    truncator = NucleusDraw(size)
    for uniform in np.random.default_rng(size).random(10):
        drawn = truncator(weights.copy(), of_mass(6, top_p, min_p), np.full(6, uniform))
        for row, token in zip(weights, drawn, strict=True):
            exact = row.astype(np.float64) + 1.0 - 1.0
            assert token == slow_draw(exact, uniform, 0, top_p, min_p, whole=1.0)


@pytest.mark.parametrize("size", [3, 300, 5157, 10_000])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_few_rows_are_drawn_as_many_are(size, top_p, min_p):
    logits, top_k = logits_of(*[0.0, 0.1, 2.0, 9.0] * 3, size=size), min(40, size - 1)
    logits[5] = np.round(logits[5], 1)  # ties
    logits[2, :-3] = -np.inf
    uniforms = np.random.default_rng(size).random(12)
    together = draw_from_largest(logits, of_largest(12, top_k, top_p, min_p, 0.8), uniforms)
    for few in range(1, FEW_ROWS + 1):
        parts = [slice(start, start + few) for start in range(0, 12, few)]
        drawn = [
            draw_from_largest(logits[part], of_largest(few, top_k, top_p, min_p, 0.8), uniforms[part])
            for part in parts
            if part.stop <= 12
        ]
        assert np.concatenate(drawn).tolist() == together[: 12 - 12 % few].tolist()


@pytest.mark.parametrize("size", [3, 300, 5157, 10_000])
@pytest.mark.parametrize(("top_p", "min_p"), [(0.05, 0.0), (0.95, 0.0), (0.9, 0.05)])
def test_a_nucleus_of_few_rows_is_drawn_from_as_of_many(size, top_p, min_p):
    logits = logits_of(*[0.1, 2.0, 4.0, 9.0] * 3, size=size)
    logits[2, :-3] = -np.inf
    logits[5] = np.round(logits[5], 1)  # ties
    weights, uniforms = softmax(logits), np.random.default_rng(size).random(12)
    weights[8] = np.nan
    together = NucleusDraw(size)(weights, of_mass(12, top_p, min_p), uniforms)
    for few in range(1, FEW_ROWS + 1):
        draw = NucleusDraw(size)
        for start in [*range(0, 13 - few, few)] * 2:  # what was learnt says where to look next
            part = slice(start, start + few)
            drawn = draw(weights[part], of_mass(few, top_p, min_p), uniforms[part])
            told = np.arange(start, start + few) != 8  # a row of NaN gets some token
            assert drawn[told].tolist() == together[part][told].tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([600, 2000, 5157]),
    cuts=st.lists(st.floats(0, 1, width=32), max_size=2),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 0.999]),
    min_p=st.sampled_from([0.0, 0.01]),
)
def test_what_was_learnt_of_other_rows_changes_no_token(seed, size, cuts, top_p, min_p):
    rng = np.random.default_rng(seed)
    weights = softmax(logits_of(*rng.uniform(0, 8, 12), size=size, seed=seed))
    weights[1] = np.sort(weights[1])  # the order of ids says what is probable
    weights[2] = np.round(weights[2], 4)  # ties
    uniforms = rng.random(12)
    learnt = NucleusDraw(size)
    learnt._cuts = [np.float32(cut) for cut in cuts]
    drawn = learnt(weights, of_mass(12, top_p, min_p), uniforms)
    again = learnt(weights, of_mass(12, top_p, min_p), uniforms)
    for row, uniform, *tokens in zip(weights, uniforms, drawn, again, strict=True):
        exact = row.astype(np.float64) + 1.0 - 1.0
        assert tokens == [slow_draw(exact, uniform, 0, top_p, min_p, whole=1.0)] * 2


@pytest.mark.parametrize("spare", [-500, 0, 3, 500])
def test_a_window_that_misses_the_threshold_changes_no_token(spare, monkeypatch):
    monkeypatch.setattr(nucleus, "SPARE", spare)
    weights = softmax(logits_of(*np.linspace(0.0, 6.0, 20), size=5157))
    uniforms = np.random.default_rng(3).random(20)
    drawn = NucleusDraw(5157)(weights, of_mass(20, 0.9), uniforms)
    for row, uniform, token in zip(weights, uniforms, drawn, strict=True):
        assert token == slow_draw(row.astype(np.float64) + 1.0 - 1.0, uniform, 0, 0.9, whole=1.0)


def test_thresholds_of_small_nuclei_are_learnt(monkeypatch):
    weights, uniforms = softmax(logits_of(*[3.0] * 8, size=10_000)), np.full(8, 0.5)
    draw = NucleusDraw(10_000)
    first = draw(weights, of_mass(8, 0.9), uniforms)
    with monkeypatch.context() as patch:
        patch.setattr(NucleusDraw, "_draw_from_all", lambda *_: pytest.fail("looked at all weights"))
        assert draw(weights, of_mass(8, 0.9), uniforms).tolist() == first.tolist()
    flat = softmax(logits_of(*[0.1] * 8, size=10_000))
    for _ in range(2):
        draw(flat, of_mass(8, 0.9), uniforms)
    assert draw._cuts == []


def test_ties_with_the_threshold_are_all_kept():
    equal = np.zeros((1, 5000), np.float32)
    for uniform, token in ((0.0, 0), (0.5, 2500), (0.9999, 4999)):
        assert draw_from_largest(equal, of_largest(1, 5, 0.9), np.array([uniform])).tolist() == [token]
        weights = np.full((1, 5000), 1 / 5000, np.float32)
        assert abs(NucleusDraw(weights.shape[1])(weights, of_mass(1, 0.3), np.array([uniform]))[0] - token) <= 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the engine's thread ignores them
@pytest.mark.parametrize("size", [5, 5000])
@pytest.mark.parametrize("negative", [False, True])
def test_rows_of_nan_keep_to_themselves(size, negative):
    logits = logits_of(1.0, 1.0, 1.0, size=size)
    weights = softmax(logits)
    uniforms = np.array([0.1, 0.5, 0.9])
    alone = (
        draw_from_largest(logits, of_largest(3, 2), uniforms),
        NucleusDraw(weights.shape[1])(weights.copy(), of_mass(3, 0.9), uniforms),
    )
    logits[1], weights[1] = np.nan, -np.float32(np.nan) if negative else np.nan
    truncator = NucleusDraw(size)
    for _ in range(3):
        beside = (
            draw_from_largest(logits, of_largest(3, 2), uniforms),
            truncator(weights.copy(), of_mass(3, 0.9), uniforms),
        )
        for first, second in zip(alone, beside, strict=True):
            assert first[[0, 2]].tolist() == second[[0, 2]].tolist()
            assert 0 <= second[1] < size
