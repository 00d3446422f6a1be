"""Series of real numbers: say a number after each step, or after the last.

Axes: B series, T steps, I numbers read, O numbers said.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor
from torch.nn import functional

from carousel.models.codec.numbers import NumbersCodec, NumbersCodecSpec
from carousel.models.head import TensorsHead
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.recurrent import RecurrentState, detach
from carousel.models.nn.series import SeriesModel, SeriesModelConfig, SeriesModelShape
from carousel.models.nn.validation import ValidationData
from carousel.models.strict import Count, Strict
from carousel.training.corpus.parameters import made_up
from carousel.training.corpus.series.series import SERIES, SeriesKind
from carousel.training.errors import RecipeError
from carousel.training.sections import Recipe
from carousel.training.task import TASKS, Evaluation, Task, require_same_corpus
from carousel.training.tasks.series.batches import Batches, Drawn, SeriesWindow, cut

AT_ONCE = 64
"""Validation series read side by side; bounds memory and changes nothing else."""


class SeriesCorpus(Strict):
    """Series that are made up, from `run.seed`: others in each epoch, and others to be measured on."""

    kind: Annotated[str, AfterValidator(SERIES.known)]
    train: Count = 1000
    """Series in an epoch."""
    validation: Count = 200
    parameters: dict[str, int | float] = Field(default_factory=dict)
    """Of the kind (training/corpus/series)."""

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        self.series()
        return self

    def series(self) -> SeriesKind:
        """The kind, with its parameters."""
        return made_up(SERIES, self.kind, self.parameters)


class SeriesRecipe(Recipe):
    """A network over series."""

    corpus: SeriesCorpus
    model: SeriesModelShape
    batches: Batches


@TASKS.register("series")
class SeriesTask(Task[SeriesRecipe, SeriesWindow]):
    """A network over series, which are drawn as it learns."""

    recipe_type = SeriesRecipe
    module: SeriesModel
    unit = "step"

    def __init__(self, recipe: SeriesRecipe) -> None:
        self.recipe = recipe
        corpus, self._kind = recipe.corpus, recipe.corpus.series()
        if corpus.train < recipe.batches.rows:
            raise RecipeError(
                f"corpus.train is {corpus.train}; a batch takes batches.rows, {recipe.batches.rows}, so it should be "
                "at least that"
            )
        drawn = f"{corpus.kind} {self._kind.model_dump_json()} {corpus.train} {recipe.run.seed}"
        self.corpus_sha256 = hashlib.sha256(drawn.encode()).hexdigest()
        self.validation_sha256 = hashlib.sha256(f"{drawn} {corpus.validation}".encode()).hexdigest()
        self._device = torch.device(recipe.run.device)
        self._drawn = Drawn(self._kind, corpus.train, recipe.batches, recipe.run.seed, self._device)
        self._validation = self._kind.draw(np.random.default_rng([recipe.run.seed, 1]), corpus.validation)
        self._binary = self._kind.loss == "binary"
        self.criterion_name = "nats" if self._binary else "squared error"
        self.module = SeriesModel(
            SeriesModelConfig.of(
                recipe.model,
                inputs=self._kind.inputs,
                outputs=self._kind.targets,
                output="probability" if self._binary else "value",
            )
        ).to(self._device)
        self.windows_per_epoch = self._drawn.windows_per_epoch
        self.tokens_per_window = recipe.batches.rows * min(
            recipe.batches.window or self._drawn.steps, self._drawn.steps
        )
        self.description = (
            f"{self.module.parameter_count:,} parameters, {corpus.train:,} series of {self._drawn.steps:,} steps and "
            f"{self.windows_per_epoch:,} windows per epoch"
        )

    @classmethod
    def open(cls, recipe: SeriesRecipe, saved: Checkpoint | None) -> SeriesTask:
        """See Task."""
        task = cls(recipe)
        require_same_corpus(task.corpus_sha256, task.validation_sha256, saved)
        return task

    def windows(self, epoch: int, start: int) -> Iterator[SeriesWindow]:
        """See Task."""
        return self._drawn.windows(epoch, start)

    def initial_state(self) -> RecurrentState:
        """Zeros. <float32>[B, ...] each"""
        return self.module.initial_state(self.recipe.batches.rows)

    def loss(self, window: SeriesWindow, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The mean over what is asked in the window, 0 where nothing is, and the state after it without its history."""
        said, after = self.module(window.inputs, self.initial_state() if window.first else state)  # [B, T, O]
        return self._total(said.float(), window) / window.asked.sum().clamp(min=1), detach(after)

    def _total(self, said: Tensor, window: SeriesWindow) -> Tensor:
        """The sum over what is asked of the mean over O; squared errors, or nats."""
        each = functional.binary_cross_entropy_with_logits if self._binary else functional.mse_loss
        return each(said[window.asked], window.targets[window.asked], reduction="sum") / said.shape[-1]

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Read the validation series with the module's present weights."""
        self.module.eval()
        total, right, count = 0.0, 0, 0
        for at in range(0, self.recipe.corpus.validation, AT_ONCE):
            (window,) = cut(self._validation, slice(at, at + AT_ONCE), 0, self._device)
            said, _ = self.module(window.inputs, self.module.initial_state(len(window.inputs)))
            total += self._total(said.double(), window).item()
            right += int(((said > 0) == (window.targets > 0.5))[window.asked].sum())
            count += int(window.asked.sum())
        mean = total / count
        if self._binary:
            accuracy = right / count / self._kind.targets
            figures, summary = {"log_loss": mean, "accuracy": accuracy}, f"{mean:.4f} nats, accuracy {accuracy:.4f}"
        else:
            nrmse = math.sqrt(mean / self._validation.targets[self._validation.asked].var())
            figures, summary = {"squared_error": mean, "nrmse": nrmse}, f"squared error {mean:.6f}, NRMSE {nrmse:.5f}"
        return Evaluation(mean, figures, summary)

    def validation_data(self) -> ValidationData:
        """What is read of each validation series."""
        inputs = torch.from_numpy(self._validation.inputs.astype(np.float32))
        return ValidationData(self.recipe.run.task, self.corpus_sha256, list(inputs))

    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        """See Task."""
        output, kind = self.module.config.output, self._kind
        read, said = NumbersCodecSpec(), NumbersCodecSpec(file="said.json")
        scaled = NumbersCodec(kind.inputs, mean=[kind.mean] * kind.inputs)
        given = NumbersCodec(kind.targets, mean=[0.0 if self._binary else kind.mean] * kind.targets)
        return {
            "codecs": {"read": read.model_dump(), "said": said.model_dump()},
            "ports": {"x": "read", output: "said"},
            "head": TensorsHead(from_=(output,)).model_dump(by_alias=True),
            "files": {read.file: scaled.to_json(), said.file: given.to_json()},
            "validation": dict(evaluation.figures),
        }
