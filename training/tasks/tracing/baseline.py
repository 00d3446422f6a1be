"""What can be had without recurrence: a logistic regression per skill on the learner's past wins and failures at it.

Performance factors analysis (Pavlik, Cen & Koedinger 2009) with the counts damped, since the tenth win says less than
the first:

    P(correct) = sigmoid(bias_s + a_s ln(1 + wins) + b_s ln(1 + failures))

It is fitted to the training learners and judged on the validation learners' same attempts as the network, so that
the two figures can be set side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
History = npt.NDArray[np.int64]

FEATURES = 3
PENALTY = 1.0
"""Weight of |weights|^2 / 2 on each skill's fit: a skill tried twice must not become a certainty."""
NEWTON_STEPS = 25


class SkillRegression:
    """One logistic regression a skill, fitted by Newton's method on the penalised likelihood.

    Args:
        skill_count: S.
        histories: attempts of the learners to learn from, 2 * skill + correct.
    """

    def __init__(self, skill_count: int, histories: Sequence[History]) -> None:
        skill, features, correct = _attempts(skill_count, histories)
        self._skill_count = skill_count
        self.weights: Floats = np.zeros((skill_count, FEATURES))
        """bias, wins, failures. <float64>[S, 3]"""
        for _ in range(NEWTON_STEPS):
            probability = _sigmoid((features * self.weights[skill]).sum(axis=1))  # [N]
            gradient = _sums(skill, (correct - probability)[:, None] * features, skill_count) - PENALTY * self.weights
            curvature = (probability * (1 - probability))[:, None, None] * features[:, :, None] * features[:, None, :]
            hessian = _sums(skill, curvature.reshape(-1, FEATURES**2), skill_count).reshape(-1, FEATURES, FEATURES)
            hessian += PENALTY * np.eye(FEATURES)
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]  # [S, 3]
            # A step of Newton's may overshoot where the first guess is far off; a bounded one always comes closer.
            self.weights += step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))

    def predict(self, histories: Sequence[History]) -> Floats:
        """P(correct) of each attempt but each learner's first, learner after learner. <float64>[N]"""
        skill, features, _ = _attempts(self._skill_count, histories)
        return _sigmoid((features * self.weights[skill]).sum(axis=1))


def _attempts(
    skill_count: int, histories: Sequence[History]
) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]:
    """Skill, features (1, ln(1 + wins), ln(1 + failures) as they stood before) and answer of all but first attempts."""
    skills, features = [], []
    for history in histories:
        counts = np.zeros((skill_count, 2))  # failures, wins
        before = np.zeros((len(history), 2))
        for position, id_ in enumerate(history.tolist()):
            before[position] = counts[id_ >> 1]
            counts[id_ >> 1, id_ & 1] += 1
        skills.append(history[1:] >> 1)
        features.append(before[1:, ::-1])
    log_counts = np.log1p(np.concatenate(features))  # [N, 2]
    correct = np.concatenate([history[1:] & 1 for history in histories])
    return np.concatenate(skills), np.concatenate([np.ones((len(log_counts), 1)), log_counts], axis=1), correct


def _sums(skill: npt.NDArray[np.int64], rows: Floats, skill_count: int) -> Floats:
    """The rows of each skill, added up. [N, K] -> [S, K]"""
    columns = [np.bincount(skill, weights=rows[:, column], minlength=skill_count) for column in range(rows.shape[1])]
    return np.stack(columns, axis=1)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
