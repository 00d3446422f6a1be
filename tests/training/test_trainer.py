"""The loop, on a task of three numbers: what it validates, keeps, stops at, and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carousel.models.nn.checkpoint import read_checkpoint
from carousel.training.errors import RunError
from carousel.training.recipe import Recipe, load_recipe
from carousel.training.task import Evaluation
from carousel.training.trainer import BEST, LAST, Progress, Trainer


class Descent:
    """Minimise |weight - window|^2; `figures` are what its validations report, one after another."""

    windows_per_epoch = 3
    tokens_per_window = 1

    def __init__(self, figures: list[float] | list[tuple[float, float]] | None = None) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.figures = iter(figures or [])
        self.validated: list[float] = []
        self.seen: list[tuple[float, float]] = []

    def windows(self, epoch: int, start: int) -> Iterator[float]:
        yield from (float(10 * epoch + index) for index in range(start, 3))

    def initial_state(self) -> dict[str, Tensor]:
        return {"count": torch.zeros(2)}

    def loss(self, window: float, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append((window, state["count"][0].item()))
        return (self.module.weight - window).square().sum(), {"count": state["count"] + 1}

    def evaluate(self) -> Evaluation:
        self.validated.append(self.module.weight.item())
        figure = next(self.figures)
        criterion, nats = figure if isinstance(figure, tuple) else (figure, 0.0)
        return Evaluation(criterion, {"figure": criterion}, f"{figure}", nats)

    def resume_header(self) -> dict[str, Any]:
        return {"task": "descent"}

    def export_header(self, evaluation: Evaluation, steps: int) -> dict[str, Any]:
        return {"task": "descent", "validation": dict(evaluation.figures), "steps": steps}


class Diary:
    """Keeps what a trainer reports."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.validations: list[tuple[int, float, bool]] = []

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        self.rates.append(learning_rate)

    def on_validation(self, progress: Progress, train_loss: float, evaluation: Evaluation, is_best: bool) -> None:
        self.validations.append((progress.epoch, evaluation.criterion, is_best))


def recipe_of(recipe_path: Path, *overrides: str) -> Recipe:
    plain = ["optimizer.kind=sgd", "optimizer.learning_rate=0.25", "optimizer.clip_norm=0.0", "schedule.shape=constant"]
    return load_recipe(recipe_path, [*plain, *overrides])


def test_trainer_carries_the_state_within_an_epoch(recipe_path: Path, tmp_path: Path) -> None:
    task = Descent([1.0, 2.0])
    Trainer(task, recipe_of(recipe_path), tmp_path).run(Diary())
    assert task.seen == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (10.0, 0.0), (11.0, 1.0), (12.0, 2.0)]


def test_trainer_keeps_the_weights_that_validated_best(recipe_path: Path, tmp_path: Path) -> None:
    task, diary = Descent([3.0, 2.0, 2.0, 5.0]), Diary()
    progress = Trainer(task, recipe_of(recipe_path, "schedule.epochs=4"), tmp_path).run(diary)
    assert diary.validations == [(1, 3.0, True), (2, 2.0, True), (3, 2.0, False), (4, 5.0, False)]
    best, last = read_checkpoint(tmp_path / BEST), read_checkpoint(tmp_path / LAST)
    assert best.header["validation"] == {"figure": 2.0}
    assert best.header["steps"] == 6
    assert best.tensors["model.weight"].item() == task.validated[1]
    assert last.tensors["parameters.weight"].item() == task.validated[3]
    assert (progress.best, progress.stale, progress.step) == (2.0, 2, 12)


def test_trainer_gives_ties_to_fewer_nats(recipe_path: Path, tmp_path: Path) -> None:
    task, diary = Descent([(100.0, 2.2), (100.0, 0.7), (100.0, 0.9), (99.0, 3.0), (100.0, 0.1), (99.0, 2.0)]), Diary()
    recipe = recipe_of(recipe_path, "schedule.epochs=6", "stopping.patience=3")
    progress = Trainer(task, recipe, tmp_path).run(diary)
    assert [is_best for *_, is_best in diary.validations] == [True, True, False, True, False, True]
    assert (progress.best, progress.best_nats, progress.stale) == (99.0, 2.0, 0)
    assert read_checkpoint(tmp_path / BEST).tensors["model.weight"].item() == task.validated[5]


@pytest.mark.parametrize("figure", [math.nan, math.inf, (1.0, math.nan)])
def test_trainer_refuses_a_validation_that_is_no_number(recipe_path: Path, tmp_path: Path, figure: float) -> None:
    with pytest.raises(
        RunError, match=r"^validation after epoch 2 gives no number \(.*\); lower optimizer\.learning_rate"
    ):
        Trainer(Descent([3.0, figure]), recipe_of(recipe_path), tmp_path).run(Diary())
    assert read_checkpoint(tmp_path / BEST).header["validation"] == {"figure": 3.0}


def test_trainer_stops_when_patience_runs_out(recipe_path: Path, tmp_path: Path) -> None:
    diary = Diary()
    recipe = recipe_of(recipe_path, "schedule.epochs=9", "stopping.patience=2")
    Trainer(Descent([3.0, 4.0, 2.0, 2.5, 2.1, 1.0]), recipe, tmp_path).run(diary)
    assert [figure for _, figure, _ in diary.validations] == [3.0, 4.0, 2.0, 2.5, 2.1]


def test_trainer_validates_and_exports_the_average(recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(recipe_path, "averaging.kind=ema", "averaging.decay=0.5", "schedule.epochs=1")
    task = Descent([1.0])
    Trainer(task, recipe, tmp_path).run(Diary())
    weight, mean = 0.0, 0.0
    for step, window in enumerate((0.0, 1.0, 2.0)):
        weight -= 0.25 * 2 * (weight - window)
        keep = min(0.5, (1 + step) / (10 + step))
        mean = keep * mean + (1 - keep) * weight
    assert task.validated == [pytest.approx(mean, rel=1e-6)]
    assert read_checkpoint(tmp_path / BEST).tensors["model.weight"].item() == task.validated[0]
    assert read_checkpoint(tmp_path / LAST).tensors["parameters.weight"].item() == pytest.approx(weight)


def test_trainer_starts_nt_asgd_from_its_validations(recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(recipe_path, "averaging.kind=nt-asgd", "averaging.patience=1", "schedule.epochs=4")
    Trainer(Descent([3.0, 2.0, 4.0, 1.0]), recipe, tmp_path).run(Diary())
    last = read_checkpoint(tmp_path / LAST)
    assert last.header["averaging"] == {"steps": 3, "history": [3.0, 2.0], "active": True}
    assert last.group("average").keys() == {"weight"}


def test_trainer_saves_within_an_epoch(recipe_path: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Interrupter(Diary):
        def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
            if progress.step == 3:
                raise Stopped

    with pytest.raises(Stopped):
        Trainer(Descent(), recipe_of(recipe_path), tmp_path).run(Interrupter())
    saved = read_checkpoint(tmp_path / LAST)  # every two windows, as the recipe says
    assert saved.header["progress"]["step"] == 2
    assert saved.tensors["state.count"].tolist() == [2.0, 2.0]


def test_trainer_refuses_a_loss_that_is_no_number(recipe_path: Path, tmp_path: Path) -> None:
    task = Descent()
    task.module.weight.data.fill_(math.nan)
    with pytest.raises(RunError, match=r"the loss is nan at step 0 \(epoch 1\); lower optimizer\.learning_rate"):
        Trainer(task, recipe_of(recipe_path), tmp_path).run(Diary())
    assert read_checkpoint(tmp_path / LAST).header["progress"]["step"] == 0  # the beginning, and nothing after it
    assert not (tmp_path / BEST).exists()


def test_trainer_follows_the_schedule(recipe_path: Path, tmp_path: Path) -> None:
    diary = Diary()
    recipe = recipe_of(recipe_path, "schedule.shape=cosine", "schedule.final_learning_rate=0.0")
    Trainer(Descent([1.0, 1.0]), recipe, tmp_path).run(diary)
    assert diary.rates == pytest.approx([0.125 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
