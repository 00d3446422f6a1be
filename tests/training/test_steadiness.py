"""The measures of DKT+ against a walk attempt by attempt."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from carousel.models.nn import score as scoring
from carousel.models.nn.score import TorchForward
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from carousel.training.tasks.tracing.steadiness import Steadiness, steadiness


def test_steadiness_is_that_of_a_walk_attempt_by_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LEARNERS_AT_ONCE", 3)
    monkeypatch.setattr(scoring, "CHUNK_STEPS", 4)
    torch.manual_seed(0)
    model = TracingModel(TracingModelConfig(skill_count=5, embedding_size=6, hidden_size=7)).eval()
    torch.nn.init.normal_(model.embedding.weight)
    random = np.random.default_rng(0)
    histories = [random.integers(0, 10, length) for length in (9, 1, 2, 13, 4, 3, 5, 10)]
    seen = steadiness(partial(TorchForward, model), histories)
    moves, own = [], []
    with torch.inference_mode():
        for history in histories:
            state, before = model.initial_state(1), None
            for id_ in history[:-1]:
                logits, state = model(torch.tensor([[id_]]), state)
                after = torch.sigmoid(logits[0, 0]).double().numpy()  # [S]
                if before is not None:
                    moves.append(after - before)
                    own.append((after - before)[id_ >> 1] * (1 if id_ & 1 else -1))
                before = after
    assert 0.1 < np.mean(np.sign(own)) < 0.9 or -0.9 < np.mean(np.sign(own)) < -0.1  # both ways, and not evenly
    assert seen.w1 == pytest.approx(np.abs(moves).mean(), rel=1e-5)
    assert seen.w2 == pytest.approx(np.square(moves).mean() ** 0.5, rel=1e-5)
    assert seen.m1 == pytest.approx(np.mean(np.sign(own)), rel=1e-9)
    assert seen.m2 == pytest.approx(np.mean(own), rel=1e-4)


def test_steadiness_of_learners_of_two_attempts_is_zero() -> None:
    model = TracingModel(TracingModelConfig(skill_count=5, embedding_size=6, hidden_size=7))
    assert steadiness(partial(TorchForward, model), [np.array([3, 4]), np.array([1])]) == Steadiness(0.0, 0.0, 0.0, 0.0)
