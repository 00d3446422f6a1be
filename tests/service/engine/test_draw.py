"""Tokens drawn by onnxruntime: by the distribution, and the same bits whatever way and beside whom."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.rows.sampling_table import SamplingTable
from carousel.service.engine.rows.table import RowTable
from carousel.service.engine.sampling.draw import ALIGNED, BUCKET, Draw, bucket_width
from carousel.service.engine.sampling.sampler import Sampler
from carousel.service.engine.sampling.softmax import Softmax

SIZES = [1, 3, 37, 128, 500, 996, 997, 10_000]


def logits_of(rows, size, seed=0):
    return (np.random.default_rng([seed, size]).standard_normal((rows, size)) * 3).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_sample_is_draw_after_softmax(size):
    logits, uniforms = logits_of(50, size), np.random.default_rng(1).random(50)
    weights = np.empty_like(logits)
    Softmax()(logits, weights)
    for elsewhere in (None, np.zeros_like(logits)):
        draw = Draw(size, elsewhere)
        drawn = draw.draw(weights, uniforms).copy()
        tokens, probabilities = draw.sample(logits.copy(), uniforms)
        np.testing.assert_array_equal(tokens, drawn)
        np.testing.assert_array_equal(probabilities, weights[np.arange(50), drawn])


@pytest.mark.parametrize("size", SIZES)
def test_row_is_drawn_alike_wherever_it_lies(size):
    """Sums of a few weights that differ by much show the order in which they were added up."""
    row = (np.random.default_rng(size).standard_normal(size) * 8).astype(np.float32)
    weights = np.exp(row - row.max())
    draw, uniforms = Draw(size), np.linspace(0, 1, 64, endpoint=False)
    many = draw.draw(np.tile(weights, (64, 1)), uniforms).copy()
    cumulative = weights.astype(np.float64).cumsum()
    edges = cumulative[:-1] / cumulative[-1]  # where the sums decide, to the last bit
    for edge in edges[:: max(1, size // 20)]:
        block = np.tile(weights, (7, 1))
        assert len(set(draw.draw(block, np.full(7, edge)).tolist())) == 1
    alone = [int(draw.draw(weights[None], uniforms[place : place + 1])[0]) for place in range(64)]
    assert alone == many.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_plain_row_gets_the_same_bits_beside_rows_that_are_not(size):
    random = np.random.default_rng(size)
    logits = logits_of(6, size)
    others = SamplingParameters(temperature=0.7, top_k=3)
    for _ in range(20):
        table, mixed = (SamplingTable(RowTable(6), 6, size) for _ in range(2))
        nothing = np.zeros(0, np.int64)
        uniforms = random.random(6)
        for row in range(6):
            table.acquire(row, SamplingParameters(), nothing)
            mixed.acquire(row, others if row % 2 else SamplingParameters(), nothing)
        table.uniforms[:, 0] = mixed.uniforms[:, 0] = uniforms
        emits = np.ones(6, np.bool_)
        plain = Sampler(size).sample(logits.copy(), table, emits)
        beside = Sampler(size).sample(logits.copy(), mixed, emits)
        np.testing.assert_array_equal(plain.tokens[::2], beside.tokens[::2])
        np.testing.assert_array_equal(plain.logprobs[::2], beside.logprobs[::2])


def test_weight_of_zero_is_never_drawn():
    weights = np.zeros((1, 300), np.float32)
    weights[0, [7, 150, 299]] = 1
    draw = Draw(300)
    drawn = [int(draw.draw(weights, np.array([u]))[0]) for u in (0.0, 1 / 3, 0.34, 0.67, 1 - 2.0**-53)]
    assert drawn == [7, 150, 150, 299, 299]


def test_rows_that_are_not_finite_are_told_and_keep_to_themselves():
    logits = logits_of(4, 200)
    logits[1, 3], logits[2] = np.nan, -np.inf
    tokens, probabilities = Draw(200).sample(logits.copy(), np.full(4, 0.5))
    assert np.isfinite(probabilities).tolist() == [True, False, False, True]
    assert ((tokens >= 0) & (tokens < 200)).all()
    alone = Draw(200).sample(logits[3:].copy(), np.full(1, 0.5))
    assert (tokens[3], probabilities[3]) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize(("size", "width"), [(10_000, 100), (8_192, 128), (996, BUCKET), (997, BUCKET), (384, 128)])
def test_buckets_are_aligned_or_filled_up(size, width):
    assert bucket_width(size) == width
    assert bucket_width(size) % ALIGNED == 0
