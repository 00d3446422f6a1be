from __future__ import annotations

from itertools import pairwise

import numpy as np

from carousel.service.engine.heads.journal import Journal, Targets
from carousel.service.engine.parameters import SamplingParameters, ScoreParameters
from carousel.service.engine.port import Request
from carousel.service.engine.rows.sampling_table import SamplingTable
from carousel.service.engine.rows.table import CHUNK, RowTable
from carousel.service.engine.sequence import Sequence

NOTHING = np.zeros(0, np.int64)


def uniforms_of(seed, count):
    rows = RowTable(1)
    table, sampling = SamplingTable(rows, 1, 5), SamplingParameters(seed=seed)
    table.acquire(0, sampling, NOTHING)
    drawn = []
    for position in range(count):
        drawn.append(float(table.next_uniforms(1)[0]))
        rows.added[0] = position + 1
        if (position + 1) % CHUNK == 0:
            table.draw(0, sampling)
    return drawn


def test_uniforms_are_philox_of_seed_and_position():
    expected = np.random.Generator(np.random.Philox(key=77)).random(3 * CHUNK + 5)
    np.testing.assert_array_equal(uniforms_of(77, 3 * CHUNK + 5), expected)
    assert uniforms_of(78, 5) != uniforms_of(77, 5)


def ids_handed_out(request):
    sequence, table = Sequence(0, request, batch=False), RowTable(1)
    table.acquire(0, sequence)
    handed_out = []
    while True:
        handed_out.append(int(table.next_ids(1)[0]))
        table.advance(1)
        if table.empty(1)[0]:
            if not table.unfilled[0]:
                return handed_out
            table.fill(0, sequence)


def test_fill_hands_out_every_prompt_id_once_but_the_last_of_a_score():
    prompt = np.arange(2 * CHUNK + 3)
    assert ids_handed_out(Request(prompt, SamplingParameters(), checkpoints=(5, CHUNK, 200))) == prompt.tolist()
    assert ids_handed_out(Request(prompt, ScoreParameters())) == prompt[:-1].tolist()


def test_targets_of_a_score_pair_each_id_with_the_next():
    prompt = np.random.default_rng(0).integers(0, 50, CHUNK + 9)
    targets, left, pairs = Targets(2), prompt[1:], []
    for place, id in enumerate(ids_handed_out(Request(prompt, ScoreParameters()))):
        if place % CHUNK == 0:
            left = targets.fill(1, left)
        pairs.append((id, int(targets.next(np.array([1]))[0])))
    assert pairs == list(pairwise(prompt))


def test_journal_gives_back_what_was_noted_of_rows_that_move():
    random = np.random.default_rng(3)
    journal, rows, noted, drained = Journal(4, ((2,), np.float32), ((), np.int64)), [0, 1, 2, 3], {}, {}
    for step in range(2 * CHUNK + 30):
        places = np.flatnonzero(random.random(len(rows)) < 0.9)
        values = random.random((len(places), 2)).astype(np.float32)
        full = journal.note(places, values, np.full(len(places), step))
        for place, value in zip(places.tolist(), values, strict=True):
            noted.setdefault(rows[place], []).append((value, step))
        for place in full.tolist():
            drained.setdefault(rows[place], []).append(journal.drain(place))
        if step in (40, 200):  # the first row leaves, and the last takes its place
            drained.setdefault(rows[0], []).append(journal.drain(0))
            journal.release(0, len(rows) - 1)
            rows = [rows[-1], *rows[1:-1]]
    for place, name in enumerate(rows):
        drained.setdefault(name, []).append(journal.drain(place))
    assert sorted(noted) == [0, 1, 2, 3]
    for name, entries in noted.items():
        values, steps = (np.concatenate(parts) for parts in zip(*drained[name], strict=True))
        np.testing.assert_array_equal(values, [value for value, _ in entries])
        assert steps.tolist() == [step for _, step in entries]


def test_release_moves_the_last_row_and_clears_what_is_free():
    rows = RowTable(3)
    table = SamplingTable(rows, 3, 10)
    for row in range(3):
        sampling = SamplingParameters(temperature=row + 0.5, top_k=row + 1, repetition_penalty=1.5, seed=row)
        rows.acquire(row, Sequence(row, Request(np.array([row + 4]), sampling), batch=False))
        table.acquire(row, sampling, NOTHING)
        table.seen[row, row] = True
    for columns in (rows, table):
        columns.release(0, last=2)
    assert rows.next_ids(2).tolist() == [6, 5]
    assert rows.ids[:2].tolist() == [2, 1]
    assert table.temperature[:2].tolist() == [2.5, 1.5]
    assert table.seen[0].nonzero()[0].tolist() == [2]
    assert not table.seen[2].any()
    assert rows.pending[2].sum() == table.uniforms[2].sum() == 0
