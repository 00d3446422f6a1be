"""Learners who are made up: item response theory with learning and forgetting over a graph of mathematics skills.

Learner u's chance at skill s before an attempt (a logistic model with one parameter per side, Rasch 1960, whose
ability moves):

    P(correct) = sigmoid(ability_u + mastery_us - difficulty_s)

- After an attempt, mastery grows towards `CEILING`: mastery += rate_u * readiness * (CEILING - mastery), more after a
  right answer than after a wrong one. Readiness is how well the prerequisites are mastered: who cannot add learns
  little from multiplying.
- Between attempts, what was gained fades towards what is kept for good, by the number of attempts since (an
  exponential curve, Ebbinghaus 1885); each further practice keeps more.
- A tutor chooses the skill: it stays with one for a few attempts, then takes the next whose prerequisites were
  practised, or goes back to an old one.

Everything follows from the seed. The probability each answer was drawn with is kept, so that tests know the best that
any model could do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PREREQUISITES: dict[str, tuple[str, ...]] = {
    "Counting": (),
    "Comparing numbers": ("Counting",),
    "Addition": ("Counting",),
    "Subtraction": ("Addition",),
    "Place value": ("Comparing numbers",),
    "Rounding": ("Place value",),
    "Multiplication": ("Addition",),
    "Division": ("Multiplication", "Subtraction"),
    "Factors and multiples": ("Division",),
    "Equivalent fractions": ("Division",),
    "Adding fractions": ("Equivalent fractions", "Factors and multiples"),
    "Multiplying fractions": ("Equivalent fractions",),
    "Decimals": ("Place value", "Equivalent fractions"),
    "Percentages": ("Decimals", "Multiplying fractions"),
    "Ratios": ("Equivalent fractions",),
    "Negative numbers": ("Subtraction",),
    "Order of operations": ("Division",),
    "Linear equations": ("Order of operations", "Negative numbers"),
    "Perimeter and area": ("Multiplication",),
    "Angles": ("Comparing numbers", "Addition"),
    "Reading graphs": ("Comparing numbers", "Decimals"),
    "Mean and median": ("Division", "Reading graphs"),
}
"""Each skill, and what must be known before it can be learnt well; a prerequisite stands above what needs it."""

SKILLS = tuple(PREREQUISITES)
"""S names; a skill's id is its position."""

CEILING = 4.0
"""The mastery, in logits, that practice tends to."""
KEPT_PER_PRACTICE = 0.12
"""Share of what is not yet kept for good that each attempt makes so."""
FADING_ATTEMPTS = 40.0
"""Attempts at other things after which what is not kept has fallen to 1/e."""
MIN_ATTEMPTS, MAX_ATTEMPTS = 20, 150


@dataclass(frozen=True, slots=True)
class Cohort:
    """Made-up learners and the truth about them."""

    histories: list[npt.NDArray[np.int64]]
    """Of each learner, the attempts as ids, 2 * skill + correct. <int64>[N]"""
    probabilities: list[npt.NDArray[np.float64]]
    """The P(correct) that each of those answers was drawn with. <float64>[N]"""


def simulate(learners: int, seed: int, first: int = 0) -> Cohort:
    """Make up learners, 20 to 150 attempts each.

    Learner i is a function of (seed, i) alone, and the skills' difficulty of the seed: a larger cohort begins with the
    learners of a smaller one, and those from `first` on are fresh to a model that was trained on those before.
    """
    skills = _graph()
    difficulty = np.random.default_rng([seed, 0]).normal(0.9, 0.8, len(SKILLS)) + 0.15 * skills.depth  # [S]
    drawn = [
        _learner(np.random.default_rng([seed, 1, index]), skills, difficulty)
        for index in range(first, first + learners)
    ]
    return Cohort([history for history, _ in drawn], [probability for _, probability in drawn])


@dataclass(frozen=True, slots=True)
class _Graph:
    parents: list[list[int]]
    depth: npt.NDArray[np.int64]
    """The longest way to a skill without prerequisites. <int64>[S]"""


def _graph() -> _Graph:
    ids = {name: id_ for id_, name in enumerate(SKILLS)}
    parents = [[ids[name] for name in names] for names in PREREQUISITES.values()]
    depth = np.zeros(len(SKILLS), np.int64)
    for skill, above in enumerate(parents):
        depth[skill] = max((depth[parent] + 1 for parent in above), default=0)
    return _Graph(parents, depth)


def _learner(
    random: np.random.Generator, skills: _Graph, difficulty: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    count = int(random.integers(MIN_ATTEMPTS, MAX_ATTEMPTS + 1))
    ability = random.normal(0.0, 1.2)
    rate = random.uniform(0.05, 0.25)
    # School has come before: the earlier the skill, the better it is known, but not to all alike.
    kept = np.maximum(0.0, random.normal(1.6 - 0.3 * skills.depth, 0.5))  # [S]
    mastery = kept.copy()  # [S]
    last = np.zeros(len(SKILLS), np.int64)  # attempt of the last practice
    history, chances = np.zeros(count, np.int64), np.zeros(count)
    practised: list[int] = []
    skill, remaining = -1, 0
    for attempt in range(count):
        if remaining == 0:
            skill, remaining = _choose(random, skills, practised), int(random.integers(3, 10))
        remaining -= 1
        faded = np.exp(-(attempt - last[skill]) / FADING_ATTEMPTS)
        mastery[skill] = kept[skill] + (mastery[skill] - kept[skill]) * faded
        chance = 1.0 / (1.0 + np.exp(-(ability + mastery[skill] - difficulty[skill])))
        correct = bool(random.random() < chance)
        history[attempt], chances[attempt] = 2 * skill + correct, chance

        readiness = float(np.mean(np.tanh(mastery[skills.parents[skill]]))) if skills.parents[skill] else 1.0
        step = rate * (1.0 if correct else 0.6) * readiness
        mastery[skill] += step * max(0.0, CEILING - mastery[skill])
        kept[skill] += KEPT_PER_PRACTICE * (mastery[skill] - kept[skill])
        last[skill] = attempt + 1
        if skill not in practised:
            practised.append(skill)
    return history, chances


def _choose(random: np.random.Generator, skills: _Graph, practised: list[int]) -> int:
    """The next skill to practise: mostly a new one within reach, else one from before."""
    reach = [
        skill
        for skill, parents in enumerate(skills.parents)
        if skill not in practised and all(parent in practised for parent in parents)
    ]
    if practised and (not reach or random.random() < 0.4):
        return int(random.choice(practised))
    return int(random.choice(reach))
