"""Beams in the engine: rows that wait, fork, move and are freed among everybody else's."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import BeamParameters, FinishReason, SamplingParameters
from carousel.service.engine.port import Request, Snapshot
from carousel.service.engine.rows.table import CHUNK, NOT_FINITE

END = 3


class Listener:
    """Steps a core and keeps what each sequence was told."""

    def __init__(self, runner, max_rows=8):
        self.core = EngineCore(runner, max_rows)
        self.tokens, self.ends, self.reports, self.requests = {}, {}, [], {}

    def beam(self, prompt, width=3, max_tokens=12, best=None, length_penalty=0.5, **fields):
        beam = BeamParameters(width, max_tokens, END, length_penalty, width if best is None else best)
        return self.add(Request(np.array(prompt), beam, **fields))

    def greedy(self, prompt, max_tokens, **fields):
        return self.add(Request(np.array(prompt), SamplingParameters(max_tokens, temperature=0.0), **fields))

    def add(self, request):
        sequence = len(self.tokens)
        self.tokens[sequence], self.requests[sequence] = [], request
        self.core.add(sequence, request)
        return sequence

    def step(self):
        with np.errstate(all="ignore"):
            output = self.core.step()
        for place, sequence in enumerate(output.batch.ids if output.batch else ()):
            assert self.requests[sequence].head.streams
            self.tokens[sequence].append((output.batch.tokens[place], output.batch.attention.get(place)))
        for sequence, event in output.finished:
            assert sequence not in self.ends, "two ends"
            self.ends[sequence] = event
        if output.report:
            self.reports.append(output.report)

    def run(self):
        while not self.core.idle:
            self.step()

    def found(self, sequence):
        return [(h.tokens, h.logprob, h.score, h.reason) for h in self.ends[sequence].result.hypotheses]


def context_of(value):
    return {"memory.a": np.full(7, value, np.float32), "memory.b": np.full((1, 2), value)}


def assert_clean(core):
    """Every row is free and holds nothing, and no beam is remembered."""
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    assert not any(head.count for head in core._heads.values())
    assert not core._heads[BeamParameters]._searches
    everything = slice(core.scheduler.max_rows)
    for arrays in (core._pool.before(everything), core._pool.context(everything)):
        assert not any(array.any() for array in arrays.values())


@pytest.mark.parametrize("width", range(1, 8))
@pytest.mark.parametrize("vocabulary", [4, 9, 23])
@pytest.mark.parametrize("levels", [0, 2])
def test_beam_finds_what_the_oracle_finds(make_runner, beam_oracle, width, vocabulary, levels):
    runner = make_runner(vocabulary, levels=levels)
    for first in range(4):
        listener = Listener(runner)
        sequence = listener.beam([first, 1], width, 2 + first * 5)
        listener.run()
        expected = beam_oracle([first, 1], listener.requests[sequence].head, vocabulary=vocabulary, levels=levels)
        assert listener.found(sequence) == expected
        assert listener.ends[sequence].snapshot is None
        assert_clean(listener.core)


@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_beam_eats_its_prompt_first(runner, beam_oracle, length):
    prompt = np.random.default_rng(length).integers(0, 23, length).tolist()
    listener = Listener(runner)
    sequence = listener.beam(prompt)
    listener.run()
    assert listener.found(sequence) == beam_oracle(prompt, listener.requests[sequence].head)
    assert sum(report.prompt_tokens for report in listener.reports) == length
    assert sum(report.generated_tokens for report in listener.reports) == len(listener.reports) - length + 1


def test_beams_of_one_are_greedy(runner, greedy_oracle):
    listener = Listener(runner)
    sequences = [listener.beam([first], width=1, max_tokens=30) for first in range(20)]
    listener.run()
    for first, sequence in enumerate(sequences):
        tokens = greedy_oracle([first], 30)
        expected = tokens[: tokens.index(END)] if END in tokens else tokens
        ((found, *_),) = listener.found(sequence)
        assert found == tuple(expected)


def test_beam_is_the_same_alone_and_among_63_others(make_runner):
    runner = make_runner(50)
    together = Listener(runner, max_rows=64)
    others = [together.greedy([i], 3 + i % 17) for i in range(30)]
    beams = [together.beam([i, 7], 1 + i % 7, 5 + i % 20) for i in range(40)]
    others += [together.greedy([i, 2], 40) for i in range(30)]
    together.run()
    assert max(report.rows for report in together.reports) == 64
    for i, sequence in enumerate(beams):
        alone = Listener(runner, max_rows=7)
        same = alone.beam([i, 7], 1 + i % 7, 5 + i % 20)
        alone.run()
        assert alone.found(same) == together.found(sequence)
    for sequence in others[::7]:
        alone = Listener(runner)
        request = together.requests[sequence]
        same = alone.greedy(request.prompt, request.head.max_tokens)
        alone.run()
        assert alone.tokens[same] == together.tokens[sequence]


def test_beam_waits_until_all_its_rows_are_free_and_is_not_overtaken(runner, greedy_oracle, beam_oracle):
    listener = Listener(runner, max_rows=4)
    short, long = listener.greedy([1], 2), listener.greedy([2], 9)
    wide, late = listener.beam([5], width=4), listener.greedy([4], 3)
    for _ in range(9):
        listener.step()
        assert [each.id for each in listener.core.scheduler.waiting] == [wide, late]
    listener.run()
    assert list(listener.ends) == [short, long, wide, late]
    assert listener.found(wide) == beam_oracle([5], listener.requests[wide].head)
    assert [token for token, _ in listener.tokens[late]] == greedy_oracle([4], 3)


def test_beam_wider_than_the_engine_is_refused(runner):
    listener = Listener(runner, max_rows=4)
    with pytest.raises(ValueError, match="the beam is 5 rows wide; allowed are 4"):
        listener.beam([1], width=5)
    assert listener.core.idle


def test_cancel_frees_all_rows_of_a_beam_at_once(runner, greedy_oracle):
    listener = Listener(runner)
    gone, stays = listener.beam([1], width=5, max_tokens=50), listener.greedy([2], 30)
    waits = listener.beam([1], width=4, keep_state=True)
    listener.step()
    for sequence in (gone, waits):
        listener.core.cancel(sequence)
        listener.core.cancel(sequence)
    assert [each.id for each in listener.core.scheduler.running] == [stays]
    listener.run()
    for sequence in (gone, waits):
        assert listener.ends[sequence].reason is FinishReason.CANCELLED
        assert listener.ends[sequence].result is None
        assert listener.ends[sequence].snapshot is None
    assert [token for token, _ in listener.tokens[stays]] == greedy_oracle([2], 30)
    assert_clean(listener.core)


@pytest.mark.parametrize("fault", [ValueError("bad row"), np.nan])
def test_row_that_fails_takes_its_beam_and_nobody_else(runner, beam_oracle, fault):
    clean = Listener(runner)
    sound, bad = clean.beam([6], width=3), clean.beam([5], width=4)
    clean.run()
    word = next(h.tokens[1] for h in clean.ends[bad].result.hypotheses if len(h.tokens) > 2)
    visited = set()
    runner.fault = lambda state, token: visited.add((state, token)) and None
    listener = Listener(runner)
    listener.beam([6], width=3)
    listener.run()
    runner.fault = lambda state, token: fault if token == word and (state, token) not in visited else None
    listener = Listener(runner)
    sound, bad = listener.beam([6], width=3), listener.beam([5], width=4)
    listener.run()
    assert listener.ends[bad].reason is FinishReason.FAILED
    assert listener.ends[bad].detail == ("ValueError: bad row" if isinstance(fault, Exception) else NOT_FINITE)
    assert listener.ends[bad].result is None
    assert listener.found(sound) == beam_oracle([6], listener.requests[sound].head)
    assert_clean(listener.core)


def test_fail_all_ends_beams_too(runner):
    listener = Listener(runner)
    running, waiting = listener.beam([1], width=5), listener.beam([1], width=5)
    listener.step()
    ends = dict(listener.core.fail_all("shutting down").finished)
    assert [ends[sequence].detail for sequence in (running, waiting)] == ["shutting down"] * 2
    assert_clean(listener.core)


def test_beam_starts_from_states_and_context(make_runner, beam_oracle):
    listener = Listener(make_runner(looks=True), max_rows=16)
    start = Snapshot({"state.a": np.full(1, 77.0), "state.b": np.full((2, 3), 77.0)}, np.zeros(0, np.int64))
    beams = [listener.beam([i], 3 + i, snapshot=start, context=context_of(100 + i)) for i in range(5)]
    listener.run()
    for i, sequence in enumerate(beams):
        assert listener.found(sequence) == beam_oracle([i], listener.requests[sequence].head, context=100 + i, start=77)
    assert_clean(listener.core)


def test_hypotheses_tell_where_each_word_was_seen(make_runner, states_after, map_of):
    runner = make_runner(looks=True)
    listener = Listener(runner, max_rows=16)
    asks = [listener.beam([i], 3, context=context_of(i), attention=True) for i in range(4)]
    quiet = listener.beam([1], 3, context=context_of(1))
    listener.run()
    for i, sequence in enumerate(asks):
        for hypothesis in listener.ends[sequence].result.hypotheses:
            states = states_after([i, *hypothesis.tokens[:-1]], context=i)
            np.testing.assert_array_equal(hypothesis.attention, [map_of(state) for state in states])
    assert all(hypothesis.attention is None for hypothesis in listener.ends[quiet].result.hypotheses)


def test_tokens_tell_where_they_were_seen_to_those_who_ask(make_runner, states_after, map_of):
    listener = Listener(make_runner(looks=True))
    asks = listener.greedy([1, 2], 9, context=context_of(5), attention=True)
    quiet = listener.greedy([1, 2], 9, context=context_of(5))
    listener.run()
    tokens, maps = zip(*listener.tokens[asks], strict=True)
    states = states_after([1, 2, *tokens[:-1]], context=5)
    np.testing.assert_array_equal(maps, [map_of(state) for state in states[1:]])
    assert listener.tokens[quiet] == [(token, None) for token in tokens]


def test_attention_of_a_model_that_has_none_is_none(runner):
    listener = Listener(runner)
    sequence, beam = listener.greedy([1], 2, attention=True), listener.beam([1], attention=True)
    listener.run()
    assert [seen for _, seen in listener.tokens[sequence]] == [None, None]
    assert all(hypothesis.attention is None for hypothesis in listener.ends[beam].result.hypotheses)


def test_caption_of_given_states_stops_at_its_end(make_runner, states_after):
    """A greedy caption is an ordinary sequence: given states with nothing pending, one begin token, a stop at `end`."""
    runner = make_runner(11, looks=True)
    start = Snapshot({"state.a": np.full(1, 5.0), "state.b": np.full((2, 3), 5.0)}, np.zeros(0, np.int64))
    listener = Listener(runner)
    fields = {"snapshot": start, "context": context_of(9), "stop": lambda token: token == END}
    sequence = listener.greedy([1], 500, **fields)
    beam = listener.beam([1], 1, 500, snapshot=start, context=context_of(9))
    listener.run()
    tokens = [token for token, _ in listener.tokens[sequence]]
    assert listener.ends[sequence].reason is FinishReason.STOP
    assert tokens[-1] == END
    assert listener.found(beam)[0][0] == tuple(tokens[:-1])
    cancelled = listener.greedy([1], 5, keep_state=True, **fields)
    listener.core.cancel(cancelled)
    listener.run()
    assert listener.ends[cancelled].snapshot.state is start.state


def test_random_churn_of_beams_and_others_leaves_no_row_and_changes_nobody(make_runner, beam_oracle, states_after):
    random = np.random.default_rng(7)
    runner = make_runner(looks=True)
    runner.fault = lambda state, token: (
        ValueError("fault") if state % 997 == 3 else np.nan if state % 991 == 5 else None
    )
    listener, wanted = Listener(runner, max_rows=16), {}
    for _ in range(1_500):
        if random.random() < 0.4 and len(listener.core.scheduler.waiting) < 10:
            prompt = random.integers(0, 23, random.integers(1, 4)).tolist()
            context, count = int(random.integers(0, 50)), int(random.integers(1, 20))
            if random.random() < 0.5:
                sequence = listener.beam(prompt, int(random.integers(1, 8)), count, context=context_of(context))
            else:
                sequence = listener.greedy(prompt, count, context=context_of(context))
            wanted[sequence] = (prompt, count, context)
        if random.random() < 0.05 and listener.core.scheduler.running:
            listener.core.cancel(random.choice([each.id for each in listener.core.scheduler.running]))
        listener.step()
    listener.run()
    assert set(listener.ends) == set(wanted)
    for kind in (True, False):
        reasons = {end.reason for id, end in listener.ends.items() if listener.requests[id].head.streams == kind}
        assert {FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.FAILED} <= reasons
    for sequence, (prompt, _, context) in wanted.items():
        end = listener.ends[sequence]
        if listener.requests[sequence].head.streams:
            tokens = [token for token, _ in listener.tokens[sequence]]
            states = states_after([*prompt, *tokens], context=context)[len(prompt) - 1 :]
            assert tokens == [int(runner.logits_of(state).argmax()) for state in states[: len(tokens)]]
        elif end.reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert listener.found(sequence) == beam_oracle(prompt, listener.requests[sequence].head, context=context)
        else:
            assert end.result is None
    assert_clean(listener.core)
