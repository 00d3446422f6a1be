"""The regression that a network must beat: it finds what the data was made with, and looks at the past only."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.training.tasks.tracing.baseline import SkillRegression

WEIGHTS = np.array([[-0.8, 0.9, -0.4], [0.5, 0.0, 0.3], [0.1, 0.4, 0.2]])


def made_histories(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    histories = []
    for _ in range(count):
        wins, failures, history = np.zeros(3), np.zeros(3), []
        for skill in random.integers(0, 3, 25):
            features = [1.0, np.log1p(wins[skill]), np.log1p(failures[skill])]
            correct = random.random() < 1 / (1 + np.exp(-WEIGHTS[skill] @ features))
            history.append(2 * skill + correct)
            (wins if correct else failures)[skill] += 1
        histories.append(np.array(history))
    return histories


def test_baseline_finds_the_weights_that_made_the_answers() -> None:
    np.testing.assert_allclose(SkillRegression(3, made_histories(1500)).weights, WEIGHTS, atol=0.12)


def test_baseline_counts_wins_and_failures_at_the_skill_before_the_attempt() -> None:
    model = SkillRegression(3, made_histories(5))
    model.weights = WEIGHTS
    history = np.array([1, 3, 1, 0, 1])  # skill 0 right, 1 right, 0 right, 0 wrong, 0 right
    logits = [
        WEIGHTS[1] @ [1, 0, 0],
        WEIGHTS[0] @ [1, np.log(2), 0],
        WEIGHTS[0] @ [1, np.log(3), 0],
        WEIGHTS[0] @ [1, np.log(3), np.log(2)],
    ]
    assert model.predict([history]) == pytest.approx(1 / (1 + np.exp(-np.array(logits))))


def test_baseline_prediction_does_not_see_its_own_answer() -> None:
    model = SkillRegression(3, made_histories(50))
    history = made_histories(1)[0]
    flipped = history.copy()
    flipped[-1] ^= 1
    assert np.array_equal(model.predict([history]), model.predict([flipped]))


def test_baseline_of_a_skill_never_seen_is_undecided() -> None:
    model = SkillRegression(4, made_histories(20))
    assert model.predict([np.array([0, 7, 6])]).tolist() == [0.5, 0.5]


def test_baseline_of_answers_that_are_all_right_stays_finite() -> None:
    weights = SkillRegression(1, [np.ones(400, np.int64)]).weights
    assert np.isfinite(weights).all()
    assert SkillRegression(1, [np.ones(400, np.int64)]).predict([np.ones(3, np.int64)]).min() > 0.5
