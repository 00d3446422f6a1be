"""Made-up learners: the seed decides all, and the truth that is kept about them is the truth."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.models.codec.interaction import InteractionCodec
from carousel.training.corpus.learners import MAX_ATTEMPTS, MIN_ATTEMPTS, PREREQUISITES, SKILLS, Cohort, simulate


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return simulate(400, 7)


def test_learners_are_a_function_of_the_seed_and_their_number(cohort: Cohort) -> None:
    fewer = simulate(5, 7)
    assert all(np.array_equal(a, b) for a, b in zip(fewer.histories, cohort.histories[:5], strict=True))
    assert np.array_equal(simulate(1, 7, first=3).histories[0], cohort.histories[3])
    assert not np.array_equal(simulate(1, 8).histories[0], cohort.histories[0])


def test_learners_attempts_are_ids_of_the_codec(cohort: Cohort) -> None:
    codec = InteractionCodec(SKILLS)
    for history, probability in zip(cohort.histories, cohort.probabilities, strict=True):
        assert MIN_ATTEMPTS <= len(history) == len(probability) <= MAX_ATTEMPTS
        assert 0 <= history.min() <= history.max() < codec.interaction_count
    assert len({int(id_) >> 1 for history in cohort.histories for id_ in history}) == len(SKILLS)


def test_prerequisites_are_skills_that_stand_above() -> None:
    for position, (skill, parents) in enumerate(PREREQUISITES.items()):
        assert all(SKILLS.index(parent) < position for parent in parents), skill


def test_skill_comes_after_its_prerequisites(cohort: Cohort) -> None:
    for history in cohort.histories:
        seen: set[str] = set()
        for id_ in history:
            name = SKILLS[id_ >> 1]
            assert seen.issuperset(PREREQUISITES[name])
            seen.add(name)


def test_answers_are_drawn_with_the_probabilities_that_are_kept(cohort: Cohort) -> None:
    probability = np.concatenate(cohort.probabilities)
    correct = np.concatenate(cohort.histories) & 1
    for low in np.arange(0.1, 0.9, 0.1):
        within = (low <= probability) & (probability < low + 0.1)
        tolerance = 4 * np.sqrt(0.25 / within.sum())
        assert correct[within].mean() == pytest.approx(probability[within].mean(), abs=tolerance)


def test_practice_helps_and_absence_hurts(cohort: Cohort) -> None:
    practised, paused = [], []
    for history, probability in zip(cohort.histories, cohort.probabilities, strict=True):
        skill = history >> 1
        for at in range(1, len(history)):
            earlier = np.flatnonzero(skill[:at] == skill[at])
            if len(earlier) and earlier[-1] == at - 1:
                practised.append(probability[at] - probability[at - 1])
            elif len(earlier) and at - earlier[-1] > 20:
                paused.append(probability[at] - probability[earlier[-1]])
    assert np.mean(practised) > 0.01
    assert np.mean(paused) < -0.01
