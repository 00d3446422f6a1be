"""The bundle that is shipped: it opens, it is small, and it predicts learners whom it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from carousel.models.bundle import Bundle, open_bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.graph import next_name
from carousel.models.nn.score import answers
from carousel.models.tracing_score import auc
from carousel.training.corpus.learners import SKILLS, simulate
from carousel.training.recipe import load_recipe
from carousel.training.tasks.tracing.baseline import SkillRegression

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tutor() -> Bundle:
    return open_bundle(ROOT / "bundles" / "tutor" / "2")


def test_tutor_is_small_and_says_where_it_came_from(tutor: Bundle) -> None:
    assert sum(map(len, tutor.files.values())) < 5_000_000
    assert tutor.codec(InteractionCodec).skills == SKILLS
    assert tutor.manifest.provenance.recipe == "tutor"
    comment = (ROOT / "training" / "recipes" / "tutor.toml").read_text()
    assert tutor.manifest.precision == "int8"
    validation = tutor.manifest.figures.fp32
    attempts, auc, accuracy = (validation[name] for name in ("attempts", "auc", "accuracy"))
    assert f"{attempts:,} attempts): AUC {auc:.4f}, accuracy {accuracy:.4f}" in comment


def test_tutor_predicts_fresh_learners_nearly_as_well_as_can_be(tutor: Bundle) -> None:
    settings = load_recipe(ROOT / "training" / "recipes" / "tutor.toml").corpus
    fresh = simulate(200, settings.seed, first=settings.learners)
    session = onnxruntime.InferenceSession(tutor.files["step.onnx"], providers=["CPUExecutionProvider"])
    longest = max(map(len, fresh.histories))
    ids = np.stack([np.pad(history, (0, longest - len(history))) for history in fresh.histories])  # [B, T]
    state = {spec.name: np.zeros((len(ids), *spec.shape[1:]), np.float32) for spec in tutor.states}
    steps = []
    for position in range(longest):
        fed = {"skill": ids[:, position] >> 1, "correct": ids[:, position] & 1, **state}
        probability, *after = session.run(["probability", *map(next_name, state)], fed)
        state = dict(zip(state, after, strict=True))
        steps.append(probability)
    predicted = np.concatenate([
        [steps[at - 1][row, history[at] >> 1] for at in range(1, len(history))]
        for row, history in enumerate(fresh.histories)
    ])  # fmt: skip
    seen = answers(fresh.histories)
    truth = np.concatenate([chances[1:] for chances in fresh.probabilities])
    counts = SkillRegression(len(SKILLS), fresh.histories).predict(fresh.histories)  # fitted to the very learners
    assert auc(counts, seen) + 0.015 < auc(predicted, seen) < auc(truth, seen)
    assert auc(predicted, seen) > auc(truth, seen) - 0.035
    assert predicted.mean() == pytest.approx(seen.mean(), abs=0.02)
