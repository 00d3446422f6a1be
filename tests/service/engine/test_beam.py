"""The search, step by step, against a slow one that sorts every candidate, and against all sentences there are."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from carousel.service.engine.heads.beam import Beam, log_softmax
from carousel.service.engine.parameters import BeamParameters, FinishReason

END = 2


def logits_after(seed, tokens, vocabulary, levels, masked):
    random = np.random.default_rng([seed, *tokens])
    if levels:
        logits = random.integers(0, levels, vocabulary).astype(np.float32)
    else:
        logits = 2 * random.standard_normal(vocabulary).astype(np.float32)
    if masked:
        logits[random.random(vocabulary) < 0.3] = -np.inf
        logits[random.integers(vocabulary)] = 1.0
    return logits


def search(parameters, logits_of, map_of=None):
    beam, histories = Beam(parameters), [()]
    while beam.ended is None:
        assert beam.live == len(histories)
        maps = None if map_of is None else np.stack([map_of(tokens) for tokens in histories])
        parents, tokens = beam.extend(np.stack([logits_of(tokens) for tokens in histories]), maps)
        histories = [(*histories[parent], token) for parent, token in zip(parents, tokens, strict=True)]
    return beam.hypotheses()


@pytest.mark.parametrize("width", range(1, 8))
@pytest.mark.parametrize("vocabulary", [3, 5, 11, 300])
@pytest.mark.parametrize("kind", ["smooth", "ties", "masked", "ties and masked"])
def test_search_finds_what_the_slow_search_finds(slow_search, width, vocabulary, kind):
    levels = 2 if "ties" in kind else 0
    cut = 0
    for seed in range(12):
        parameters = BeamParameters(width, 1 + seed % 9, END, length_penalty=(0.0, 0.7, 1.0)[seed % 3], best=width)

        def logits_of(tokens, seed=seed):
            return logits_after(seed, tokens, vocabulary, levels, "masked" in kind)

        expected = slow_search(parameters, logits_of)
        found = search(parameters, logits_of)
        assert [(h.tokens, h.logprob, h.score, h.reason) for h in found] == expected
        cut += sum(h.reason is FinishReason.LENGTH for h in found)
    assert cut


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0])
def test_search_as_wide_as_the_language_finds_the_best_sentence(slow_log_softmax, length_penalty):
    vocabulary, longest = 4, 4
    for seed in range(5):

        def logits_of(tokens, seed=seed):
            return logits_after(seed, tokens, vocabulary, 0, False)

        scores = {}
        for length in range(longest):
            for words in product([0, 1, 3], repeat=length):
                for last in [END, 0, 1, 3] if length == longest - 1 else [END]:
                    sentence = (*words, last)
                    total = sum(slow_log_softmax(logits_of(sentence[:i]))[t] for i, t in enumerate(sentence))
                    scores[sentence] = total / len(sentence) ** length_penalty
        best = max(scores, key=scores.get)
        found = search(BeamParameters(300, longest, END, length_penalty), logits_of)[0]
        assert found.tokens == tuple(token for token in best if token != END)
        assert found.score == pytest.approx(scores[best], abs=1e-12)


def test_search_of_width_one_is_greedy():
    for seed in range(40):
        tokens = []
        while len(tokens) < 12:
            token = int(logits_after(seed, tokens, 7, 3 * (seed % 2), False).argmax())
            if token == END:
                break
            tokens.append(token)
        found = search(BeamParameters(1, 12, END), lambda t, seed=seed: logits_after(seed, t, 7, 3 * (seed % 2), False))
        assert [found[0].tokens] == [tuple(tokens)]
        assert len(found) == 1


def test_hypothesis_counts_the_end_but_does_not_show_it(slow_log_softmax):
    found = search(BeamParameters(1, 5, END, length_penalty=1.0), lambda tokens: np.array([0, 0, 4 * len(tokens)], "f"))
    step, last = slow_log_softmax(np.zeros(3, "f")), slow_log_softmax(np.array([0, 0, 4], "f"))
    assert found[0].tokens == (0,)
    assert found[0].reason is FinishReason.STOP
    assert found[0].logprob == step[0] + last[2]
    assert found[0].score == found[0].logprob / 2


def test_hypothesis_has_the_map_of_each_of_its_tokens():
    def map_of(tokens):
        return np.random.default_rng([1, *tokens]).random((2, 3)).astype(np.float32)

    found = search(BeamParameters(4, 6, END, best=4), lambda tokens: logits_after(3, tokens, 6, 0, False), map_of)
    for hypothesis in found:
        assert hypothesis.attention.shape == (len(hypothesis.tokens), 2, 3)
        for place, seen in enumerate(hypothesis.attention):
            np.testing.assert_array_equal(seen, map_of(hypothesis.tokens[:place]))


def test_search_refuses_what_is_not_finite():
    for logits in ([0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3):
        with np.errstate(all="ignore"):
            assert Beam(BeamParameters(3, 5, END)).extend(np.array([logits], np.float32), None) is None


def test_search_without_a_possible_word_ends():
    only_end = np.array([-np.inf, -np.inf, 0.0], np.float32)
    (found,) = search(BeamParameters(3, 9, END, best=3), lambda tokens: only_end)
    assert (found.tokens, found.logprob, found.reason) == ((), 0.0, FinishReason.STOP)


def test_log_softmax_is_that_of_exact_sums():
    logits = (np.random.default_rng(0).standard_normal((3, 1_000)) * 8).astype(np.float32)
    for row, seen in zip(logits.tolist(), log_softmax(logits).tolist(), strict=True):
        total = math.log(math.fsum(math.exp(value) for value in row))
        assert seen == pytest.approx([value - total for value in row], abs=1e-12)
