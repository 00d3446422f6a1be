"""The figures of tracing against values worked by hand, and predictions against a walk attempt by attempt."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from carousel.models.nn import score as scoring
from carousel.models.nn.score import TorchForward, answers, predict
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from carousel.models.tracing_score import auc, score


@pytest.mark.parametrize(
    ("probability", "correct", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 3 / 4),  # of 4 pairs, only (0.35, 0.4) is the wrong way round
        ([0.9, 0.8, 0.2], [1, 1, 0], 1.0),
        ([0.2, 0.8, 0.9], [1, 0, 0], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0], 1 / 2),
        ([0.5, 0.5, 0.2, 0.7], [1, 0, 0, 1], 3.5 / 4),  # one pair of four ties
        ([0.3, 0.3, 0.3, 0.6, 0.1], [1, 1, 0, 0, 0], (0.5 + 0.5 + 0 + 0 + 1 + 1) / 6),
        ([0.3, 0.4], [1, 1], 0.5),
    ],
)
def test_auc_is_the_share_of_pairs_in_the_right_order(
    probability: list[float], correct: list[int], expected: float
) -> None:
    assert auc(np.array(probability), np.array(correct, bool)) == pytest.approx(expected, abs=1e-15)


def test_auc_is_that_of_all_pairs_counted_one_by_one() -> None:
    random = np.random.default_rng(0)
    probability = random.integers(0, 12, 200) / 12  # many ties
    correct = random.random(200) < probability
    right, wrong = probability[correct], probability[~correct]
    pairs = [(r > w) + 0.5 * (r == w) for r in right for w in wrong]
    assert auc(probability, correct) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_score_is_worked_by_hand() -> None:
    seen = score(np.array([0.8, 0.5, 0.25, 0.4]), np.array([True, True, False, True]))
    assert seen.attempts == 4
    assert seen.accuracy == 0.75  # 0.5 says right; 0.4 is on the wrong side
    assert seen.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.5) + math.log(0.75) + math.log(0.4)) / 4)
    assert seen.auc == 1.0


def test_score_of_a_sure_mistake_is_finite() -> None:
    assert score(np.array([1.0, 0.0]), np.array([False, False])).log_loss == pytest.approx(
        -math.log(1e-12) / 2, rel=1e-3
    )


def test_answers_leave_out_each_learners_first() -> None:
    assert answers([np.array([1, 3, 4]), np.array([7]), np.array([0, 9])]).tolist() == [True, False, True]


def test_predictions_are_those_of_a_walk_attempt_by_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LEARNERS_AT_ONCE", 3)
    monkeypatch.setattr(scoring, "CHUNK_STEPS", 4)
    torch.manual_seed(0)
    model = TracingModel(TracingModelConfig(skill_count=5, embedding_size=6, hidden_size=7, output_dropout=0.5)).eval()
    random = np.random.default_rng(0)
    histories = [random.integers(0, 10, length) for length in (9, 1, 2, 13, 4, 1, 5)]
    seen = predict(partial(TorchForward, model), histories)
    expected = []
    with torch.inference_mode():
        for history in histories:
            state = model.initial_state(1)
            for before, after in pairwise(history):
                logits, state = model(torch.tensor([[before]]), state)
                expected.append(torch.sigmoid(logits[0, 0, after >> 1]).item())
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    assert len(seen) == len(answers(histories))
