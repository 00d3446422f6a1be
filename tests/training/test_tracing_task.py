"""The loss of tracing, worked by hand, and what is no part of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from carousel.models.codec.interaction import InteractionCodec
from carousel.training.corpus.answers import AnswerCorpus
from carousel.training.errors import CorpusError
from carousel.training.recipe import load_recipe
from carousel.training.tasks.tracing.histories import HistoryWindow
from carousel.training.tasks.tracing.losses import Loss as TracingLoss
from carousel.training.tasks.tracing.losses import tracing_loss
from carousel.training.tasks.tracing.task import TracingTask

RECIPE = """
[run]
task = "tracing"

[corpus]
kind = "generated"

[model]
embedding_size = 6
hidden_size = 7

[batches]
learners = 4
window = 5
"""


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.fixture
def window() -> HistoryWindow:
    """Two learners of three skills: (0 right) -> (1 wrong) -> (2 right), and (1 wrong) -> (1 right)."""
    return HistoryWindow(
        ids=torch.tensor([[1, 2], [2, 0]]),
        targets=torch.tensor([[2, 5], [3, 0]]),
        present=torch.tensor([[True, True], [True, False]]),
        first=True,
    )


@pytest.fixture
def logits() -> torch.Tensor:
    """P(correct) of each skill after each attempt, as logits. [B, T, S]"""
    probability = [[[0.9, 0.3, 0.5], [0.8, 0.2, 0.6]], [[0.5, 0.4, 0.5], [0.01, 0.99, 0.01]]]
    return torch.tensor([[[logit(p) for p in step] for step in learner] for learner in probability])


def test_loss_is_the_cross_entropy_of_the_next_answers_present(logits: torch.Tensor, window: HistoryWindow) -> None:
    expected = -math.log(1 - 0.3) - math.log(0.6) - math.log(0.4)
    assert tracing_loss(logits, window, TracingLoss()).item() == pytest.approx(expected, rel=1e-5)


def test_reconstruction_is_the_cross_entropy_of_the_answers_just_seen(
    logits: torch.Tensor, window: HistoryWindow
) -> None:
    seen = tracing_loss(logits, window, TracingLoss(reconstruction=0.5)) - tracing_loss(logits, window, TracingLoss())
    expected = -math.log(0.9) - math.log(1 - 0.2) - math.log(1 - 0.4)
    assert seen.item() == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({"waviness_l1": 3.0}, 3.0 * (0.1 + 0.1 + 0.1) / 3),
        ({"waviness_l2": 7.0}, 7.0 * (0.01 + 0.01 + 0.01) / 3),
        ({"waviness_l1": 3.0, "waviness_l2": 7.0}, 0.3 + 0.07),
    ],
)
def test_waviness_is_the_mean_move_of_a_learner_who_is_present(
    logits: torch.Tensor, window: HistoryWindow, terms: dict[str, float], expected: float
) -> None:
    seen = tracing_loss(logits, window, TracingLoss(**terms)) - tracing_loss(logits, window, TracingLoss())
    assert seen.item() == pytest.approx(expected, rel=1e-4)


def corpus_of(train: list[list[int]], validation: list[list[int]]) -> AnswerCorpus:
    codec = InteractionCodec(["addition", "area", "ratios"])
    return AnswerCorpus(codec, [np.array(h) for h in train], [np.array(h) for h in validation], "0" * 64, "1" * 64)


@pytest.fixture
def make_task(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)

    def make(train: list[list[int]], validation: list[list[int]]) -> TracingTask:
        torch.manual_seed(0)
        return TracingTask(load_recipe(path), corpus_of(train, validation))

    return make


def test_epochs_loss_is_that_of_each_history_in_one_piece(make_task) -> None:
    random = np.random.default_rng(0)
    histories = [random.integers(0, 6, length).tolist() for length in (14, 3, 8, 1, 2, 6)]
    task = make_task(histories, [[1, 2]])
    state, total = task.initial_state(), 0.0
    for window in task.windows(0, 0):
        loss, state = task.loss(window, state)
        total += loss.item() * task.targets_per_window
    expected = 0.0
    for history in histories:
        if len(history) > 1:
            ids = torch.tensor([history])
            logits, _ = task.module(ids[:, :-1], task.module.initial_state(1))
            probability = torch.sigmoid(logits[0, torch.arange(len(history) - 1), ids[0, 1:] >> 1])
            right = (ids[0, 1:] & 1).bool()
            expected -= torch.where(right, probability, 1 - probability).log().sum().item()
    assert total == pytest.approx(expected, rel=1e-5)
    assert task.targets_per_window * task.windows_per_epoch == sum(len(history) - 1 for history in histories)


def test_evaluation_counts_every_attempt_but_the_first(make_task) -> None:
    seen = make_task([[1, 2, 3]], [[0, 1, 2], [5], [4, 4, 5, 5]]).evaluate()
    assert seen.figures["attempts"] == 5
    assert seen.criterion == 1 - seen.figures["auc"]


def test_task_without_an_attempt_to_predict_is_refused(make_task) -> None:
    with pytest.raises(CorpusError, match="no validation learner has two attempts"):
        make_task([[1, 2]], [[3], [4]])


@pytest.mark.parametrize(("last", "word"), [(1, "right"), (0, "wrong")])
def test_weights_are_chosen_by_log_loss_where_auc_cannot_move(tmp_path: Path, last: int, word: str) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    codec, train = InteractionCodec(["a", "b"]), [np.array([0, 3, 1, 2])]
    validation = [np.array([0, 2 + last, last]), np.array([1, 2 + last])]  # first answers are predicted by nobody
    task = TracingTask(load_recipe(tmp_path / "r.toml"), AnswerCorpus(codec, train, validation, "0" * 64, "0" * 64))
    assert task.criterion_name == "log loss"
    assert f"every answer to be predicted of the validation learners is {word}, so AUC is 0.5" in task.description
    seen = task.evaluate()
    assert seen.criterion == seen.nats == seen.figures["log_loss"]
    both = TracingTask(load_recipe(tmp_path / "r.toml"), AnswerCorpus(codec, train, train, "0" * 64, "0" * 64))
    assert (both.criterion_name, "AUC is 0.5" in both.description) == ("1 - AUC", False)
    assert both.evaluate().criterion == 1.0 - both.evaluate().figures["auc"]
