import numpy as np
import pytest

from service.engine import truncation
from service.engine.plan import Truncation
from service.engine.truncation import ALL_SORTED, CANDIDATES, Truncator

SIZE = 5 * CANDIDATES + 37


def _weights(*sharpness: float, seed: int = 0) -> np.ndarray:
    """A row of probabilities for each, from flat (0) to all on a few."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(sharpness), SIZE)) * np.array(sharpness)[:, None]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _kept(truncator: Truncator, weights: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    rows = np.arange(len(weights))
    parameters = Truncation(
        rows,
        np.full(len(rows), top_k, np.int64),
        np.full(len(rows), top_p),
        np.full(len(rows), min_p, np.float32),
    )
    result = weights.copy()
    truncator.truncate(result, parameters)
    return result


def _expected(row: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """By the definition: top-k with ties, then the fewest of the largest that make up top-p of what is left."""
    row = row.astype(np.float64)
    if top_k:
        row = np.where(row >= np.sort(row)[-top_k], row, 0.0)
    ordered = -np.sort(-row)
    count = int((np.cumsum(ordered) < top_p * row.sum()).sum()) + 1
    return row >= ordered[count - 1]


@pytest.mark.parametrize("top_k", [0, 1, 40, CANDIDATES - 1, CANDIDATES, CANDIDATES + 1, 3 * CANDIDATES])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_k_and_top_p_keep_what_the_definition_keeps(top_k, top_p):
    weights = _weights(0.0, 0.3, 1.0, 3.0, 8.0)
    for row, kept in zip(weights, _kept(Truncator(), weights, top_k, top_p), strict=True):
        wanted = _expected(row, top_k, top_p)
        # Sums of a thousand float32 numbers differ in the last bits: a weight at the edge may fall on either side.
        assert abs(int((kept > 0).sum()) - int(wanted.sum())) <= max(1, 0.002 * wanted.sum())
        assert row[kept > 0].min() >= row[kept == 0].max(initial=0.0)


@pytest.mark.parametrize("top_k", [0, 7, CANDIDATES, 2 * CANDIDATES])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_candidates_change_no_bit_of_what_is_kept(monkeypatch, top_k, sharpness):
    weights = _weights(*[sharpness] * 16)
    weights[:4] = np.round(weights[:4], 4)  # many ties
    by_candidates = _kept(Truncator(), weights, top_k, 0.9)
    monkeypatch.setattr(truncation, "CANDIDATES", SIZE)
    assert by_candidates.tobytes() == _kept(Truncator(), weights, top_k, 0.9).tobytes()


def test_ties_with_the_kth_are_kept_beyond_the_candidates():
    weights = np.full((1, SIZE), 1.0 / SIZE, np.float32)
    assert (_kept(Truncator(), weights, top_k=5, top_p=0.9) > 0).all()


def test_rows_that_need_all_weights_are_not_looked_at_twice(monkeypatch):
    partitioned = []
    partition = np.partition
    monkeypatch.setattr(np, "partition", lambda *a, **k: (partitioned.append(1), partition(*a, **k))[1])
    truncator, flat = Truncator(), _weights(*[0.1] * 8)
    first = _kept(truncator, flat, top_p=0.9)
    for _ in range(ALL_SORTED):
        assert _kept(truncator, flat, top_p=0.9).tobytes() == first.tobytes()
    assert len(partitioned) == 1
    _kept(truncator, _weights(*[5.0] * 8), top_p=0.9)
    assert len(partitioned) == 2
