"""Truncated draws against slow ones that put all weights of a row in order, token for token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.service.engine.rows.plan import LargestOnly, MassOnly
from carousel.service.engine.sampling import truncation
from carousel.service.engine.sampling.truncation import MassTruncator, draw_from_largest

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
    truncator = MassTruncator()
    for uniform in np.random.default_rng(size).random(10):
        drawn = truncator.draw(weights.copy(), of_mass(6, top_p, min_p), np.full(6, uniform))
        for row, token in zip(weights, drawn, strict=True):
            exact = row.astype(np.float64) + 1.0 - 1.0
            assert token == slow_draw(exact, uniform, 0, top_p, min_p, whole=1.0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.floats(0, 1), top_p=st.sampled_from([0.1, 0.5, 0.95, 0.999]))
def test_what_was_learnt_of_other_rows_changes_no_token(seed, cut, top_p):
    rng = np.random.default_rng(seed)
    weights = softmax(logits_of(*rng.uniform(0, 8, 12), size=2000, seed=seed))
    uniforms, parameters = rng.random(12), of_mass(12, top_p)
    learnt = MassTruncator()
    learnt._cut = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncation, "SPARSE", 0)  # always among the candidates first
        among_candidates = learnt.draw(weights.copy(), parameters, uniforms)
        patch.setattr(truncation, "SPARSE", 1 << 30)  # never
        from_all = MassTruncator().draw(weights.copy(), parameters, uniforms)
    assert among_candidates.tolist() == from_all.tolist()


def test_truncator_learns_where_to_look(monkeypatch):
    weights, looked = softmax(logits_of(*[3.0] * 8, size=10_000)), []
    monkeypatch.setattr(MassTruncator, "_draw_from_all", lambda *_: looked.append(1) or np.zeros(8, np.int64))
    truncator = MassTruncator()
    truncator._cut = 1.0  # nothing is as large: every row fails
    truncator.draw(weights.copy(), of_mass(8, 0.9), np.full(8, 0.5))
    assert looked
    monkeypatch.undo()
    truncator.draw(weights.copy(), of_mass(8, 0.9), np.full(8, 0.5))
    monkeypatch.setattr(MassTruncator, "_draw_from_all", lambda *_: pytest.fail("looked at all weights"))
    truncator.draw(weights.copy(), of_mass(8, 0.9), np.full(8, 0.5))


def test_ties_with_the_threshold_are_all_kept():
    equal = np.zeros((1, 5000), np.float32)
    for uniform, token in ((0.0, 0), (0.5, 2500), (0.9999, 4999)):
        assert draw_from_largest(equal, of_largest(1, 5, 0.9), np.array([uniform])).tolist() == [token]
        weights = np.full((1, 5000), 1 / 5000, np.float32)
        assert abs(MassTruncator().draw(weights, of_mass(1, 0.3), np.array([uniform]))[0] - token) <= 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the engine's thread ignores them
@pytest.mark.parametrize("size", [5, 5000])
@pytest.mark.parametrize("negative", [False, True])
def test_rows_of_nan_keep_to_themselves(size, negative):
    logits = logits_of(1.0, 1.0, 1.0, size=size)
    weights = softmax(logits)
    uniforms = np.array([0.1, 0.5, 0.9])
    alone = (
        draw_from_largest(logits, of_largest(3, 2), uniforms),
        MassTruncator().draw(weights.copy(), of_mass(3, 0.9), uniforms),
    )
    logits[1], weights[1] = np.nan, -np.float32(np.nan) if negative else np.nan
    truncator = MassTruncator()
    for _ in range(3):
        beside = (
            draw_from_largest(logits, of_largest(3, 2), uniforms),
            truncator.draw(weights.copy(), of_mass(3, 0.9), uniforms),
        )
        for first, second in zip(alone, beside, strict=True):
            assert first[[0, 2]].tolist() == second[[0, 2]].tolist()
            assert 0 <= second[1] < size
