"""A task of one's own: a class that registers itself, and nothing of the trainer is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle
from carousel.models.errors import CheckpointError
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from carousel.models.nn.language import LanguageModel, LanguageModelConfig, LanguageModelShape
from carousel.models.nn.recurrent import detach
from carousel.models.nn.validation import ValidationData
from carousel.models.strict import Count, Strict
from carousel.training.__main__ import main
from carousel.training.errors import RecipeError
from carousel.training.recipe import load_recipe
from carousel.training.sections import Recipe
from carousel.training.task import TASKS, Evaluation, Task, require_same_corpus
from carousel.training.trainer import BEST, LAST

LANES, WINDOW = 3, 5


class Bits(Strict):
    seed: Count = 1


class ParityRecipe(Recipe):
    corpus: Bits
    model: LanguageModelShape


class ParityTask(Task[ParityRecipe, Tensor]):
    """Say after each bit whether the ones so far are odd: what takes a memory of one bit."""

    recipe_type = ParityRecipe
    unit = "bit"
    criterion_name = "nats/bit"
    windows_per_epoch = 2
    tokens_per_window = LANES * WINDOW
    description = "bits"

    @classmethod
    def open(cls, recipe: ParityRecipe, saved: Checkpoint | None) -> ParityTask:
        task = cls()
        task.recipe = recipe
        task.corpus_sha256 = task.validation_sha256 = f"{recipe.corpus.seed:064x}"
        require_same_corpus(task.corpus_sha256, task.validation_sha256, saved)
        task.module = LanguageModel(LanguageModelConfig.of(recipe.model, vocabulary_size=2))
        return task

    def windows(self, epoch: int, start: int) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(self.recipe.corpus.seed + epoch)
        bits = torch.randint(0, 2, (self.windows_per_epoch, LANES, WINDOW), generator=random)
        yield from bits[start:]

    def initial_state(self) -> dict[str, Tensor]:
        return {**self.module.initial_state(LANES), "odd": torch.zeros(LANES, dtype=torch.int64)}

    def loss(self, window: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        state = dict(state)
        odd = (window.cumsum(1) + state.pop("odd")[:, None]) % 2
        logits, after = self.module(window, state)
        loss = functional.cross_entropy(logits.flatten(0, 1), odd.flatten())
        return loss, {**detach(after), "odd": odd[:, -1]}

    def evaluate(self) -> Evaluation:
        with torch.inference_mode():
            loss, _ = self.loss(next(self.windows(10**6, 0)), self.initial_state())
        return Evaluation(loss.item(), {"nats_per_bit": loss.item()}, f"{loss.item():.4f} nats/bit")

    def validation_data(self) -> ValidationData:
        return ValidationData("parity", self.corpus_sha256, list(next(self.windows(10**6, 0))))

    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        head = {"kind": "tensors", "from": ["logits"]}
        return {"codecs": {}, "ports": {}, "head": head, "files": {}, "validation": dict(evaluation.figures)}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(TASKS.choices, "parity", ParityTask)
    path = tmp_path / "parity.toml"
    path.write_text('[run]\ntask = "parity"\n[model]\ncell = "elman"\nhidden_size = 7\nembedding_size = 4\n')
    return path


def test_task_of_ones_own_is_trained_by_the_command(recipe: Path, tmp_path: Path, capsys) -> None:
    run = ["--output", str(tmp_path / "run"), "schedule.epochs=1", "run.threads=1"]
    assert main([str(recipe), *run]) == 0
    assert "best validation 0." in (said := capsys.readouterr().out)
    assert "nats/bit; weights in" in said
    best, last = read_checkpoint(tmp_path / "run" / BEST), read_checkpoint(tmp_path / "run" / LAST)
    assert last.header["progress"]["step"] == 2
    assert best.header["task"] == "parity"
    assert best.header["provenance"] == {
        "recipe": "parity", "corpus_sha256": f"{1:064x}", "parameters": 227, "cell": "elman", "steps": 2,
    }  # fmt: skip
    assert set(best.header["validation"]) == {"nats_per_bit"}


def test_task_of_ones_own_resumes_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    epochs = ["schedule.epochs=3", "run.threads=1", "model.hidden_dropout=0.3", "run.save_every_windows=1"]
    assert main([str(recipe), *epochs, "--output", str(tmp_path / "whole")]) == 0

    class Killed(Exception):
        pass

    windows = ParityTask.windows

    def one_window_of_the_second_epoch(task: ParityTask, epoch: int, start: int) -> Iterator[Tensor]:
        for index, window in enumerate(windows(task, epoch, start)):
            if epoch == 1 and index == 1:
                raise Killed
            yield window

    ParityTask.windows = one_window_of_the_second_epoch
    try:
        with pytest.raises(Killed):
            main([str(recipe), *epochs, "--output", str(tmp_path / "cut")])
    finally:
        ParityTask.windows = windows
    assert main([str(recipe), *epochs, "--output", str(tmp_path / "cut"), "--resume"]) == 0
    for name in (LAST, BEST):
        seen, expected = read_checkpoint(tmp_path / "cut" / name), read_checkpoint(tmp_path / "whole" / name)
        assert seen.header == expected.header
        assert all(torch.equal(seen.tensors[key], value) for key, value in expected.tensors.items())


def test_task_of_ones_own_is_published(recipe: Path, tmp_path: Path) -> None:
    assert main([str(recipe), "--output", str(tmp_path / "run"), "schedule.epochs=1", "run.threads=1"]) == 0
    done = export_checkpoint(tmp_path / "run", tmp_path / "models", "odd")
    manifest = open_bundle(done.bundle).manifest
    assert (manifest.task, manifest.step.inputs, manifest.head.outputs) == ("parity", ("token",), ("logits",))
    assert manifest.parity is not None
    assert manifest.parity.row_independent
    assert manifest.figures is not None
    assert manifest.figures.served == read_checkpoint(tmp_path / "run" / BEST).header["validation"]
    with pytest.raises(CheckpointError, match=r"is of task 'parity', and what int8 costs is measured of .*--precision"):
        export_checkpoint(tmp_path / "run", tmp_path / "models", "odd", precision="int8")


def test_task_of_ones_own_has_sections_of_its_own(recipe: Path) -> None:
    assert load_recipe(recipe).corpus == Bits(seed=1)
    with pytest.raises(RecipeError, match=r"^\[loss\] is not a section of a recipe; allowed are .*, corpus, model$"):
        load_recipe(recipe, ["loss.words=1"])
    with pytest.raises(RecipeError, match=r"^run\.task is 'partiy'; it should be .* \(perhaps 'parity'\?\)$"):
        load_recipe(recipe, ["run.task=partiy"])
