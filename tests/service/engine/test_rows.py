from __future__ import annotations

from itertools import pairwise

import numpy as np

from carousel.service.engine.rows.table import CHUNK, RowTable
from carousel.service.engine.sequence import SamplingParameters, Sequence


def uniforms_of(seed, count):
    table = RowTable(1, 5)
    sequence = Sequence(np.array([1]), SamplingParameters(seed=seed))
    table.acquire(0, sequence)
    drawn = []
    for position in range(count):
        drawn.append(float(table.next_uniforms(1)[0]))
        table.generated[0] = position + 1
        if (position + 1) % CHUNK == 0:
            table.draw(0, sequence)
    return drawn


def test_uniforms_are_philox_of_seed_and_position():
    expected = np.random.Generator(np.random.Philox(key=77)).random(3 * CHUNK + 5)
    np.testing.assert_array_equal(uniforms_of(77, 3 * CHUNK + 5), expected)
    assert uniforms_of(78, 5) != uniforms_of(77, 5)


def test_fill_hands_out_every_prompt_id_once():
    prompt = np.arange(2 * CHUNK + 3)
    sequence, table = Sequence(prompt, SamplingParameters()), RowTable(1, 1000)
    table.acquire(0, sequence)
    eaten = []
    while True:
        eaten.append(int(table.next_ids(1)[0]))
        table.advance(1)
        if table.empty(1)[0]:
            if not table.unfilled[0]:
                break
            table.fill(0, sequence)
    assert eaten == prompt.tolist()


def test_fill_of_a_score_pairs_each_id_with_the_next():
    prompt = np.random.default_rng(0).integers(0, 50, CHUNK + 9)
    sequence, table = Sequence(prompt, None), RowTable(1, 50)
    table.acquire(0, sequence)
    pairs = []
    while table.filled[0]:
        pairs += list(zip(table.pending[0, : table.filled[0]], table.targets[0, : table.filled[0]], strict=True))
        if not table.unfilled[0]:
            break
        table.fill(0, sequence)
    assert pairs == list(pairwise(prompt))


def test_release_moves_the_last_row_and_clears_what_is_free():
    table = RowTable(3, 10)
    for row in range(3):
        sampling = SamplingParameters(temperature=row + 0.5, top_k=row + 1, repetition_penalty=1.5, seed=row)
        table.acquire(row, Sequence(np.array([row + 4]), sampling))
        table.seen[row, row] = True
    table.release(0, last=2)
    assert table.next_ids(2).tolist() == [6, 5]
    assert table.temperature[:2].tolist() == [2.5, 1.5]
    assert table.seen[0].nonzero()[0].tolist() == [2]
    assert not table.seen[2].any()
    assert table.pending[2].sum() == table.uniforms[2].sum() == 0
