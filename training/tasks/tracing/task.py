"""Knowledge tracing: predict whether a learner's next attempt is right, from all attempts before it.

Axes: B learners, T attempts, S skills.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from carousel.models.codec.interaction import InteractionCodecSpec
from carousel.models.figures import TracingValidation
from carousel.models.head import ReadHead
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.recurrent import RecurrentState, detach
from carousel.models.nn.score import TorchForward, answers, predict
from carousel.models.nn.tracing import TracingModel, TracingModelConfig, TracingModelShape
from carousel.models.nn.validation import ValidationData
from carousel.models.tracing_score import score
from carousel.training.corpus.answers import AnswerCorpus, AnswerFiles, read_answers
from carousel.training.errors import CorpusError
from carousel.training.sections import Recipe
from carousel.training.task import TASKS, Evaluation, Task, require_same_corpus
from carousel.training.tasks.tracing.baseline import SkillRegression
from carousel.training.tasks.tracing.histories import Batches, Histories, HistoryWindow
from carousel.training.tasks.tracing.losses import Loss, tracing_loss
from carousel.training.tasks.tracing.steadiness import steadiness


class TracingRecipe(Recipe):
    """A knowledge tracing model."""

    corpus: AnswerFiles
    model: TracingModelShape
    batches: Batches
    loss: Loss


@TASKS.register("tracing")
class TracingTask(Task[TracingRecipe, HistoryWindow]):
    """A tracing model, its training learners as batches, and its validation learners."""

    recipe_type = TracingRecipe
    module: TracingModel
    unit = "answer"

    def __init__(self, recipe: TracingRecipe, corpus: AnswerCorpus) -> None:
        self.recipe = recipe
        self._corpus = corpus
        self.corpus_sha256, self.validation_sha256 = corpus.sha256, corpus.validation_sha256
        device = torch.device(recipe.run.device)
        batches = recipe.batches
        self._histories = Histories(corpus.train, batches.learners, batches.window, recipe.run.seed, device)
        self._answers = answers(corpus.validation)
        if len(self._answers) == 0:
            raise CorpusError("no validation learner has two attempts; one to read and one to predict are needed")
        self._one_sided = len(set(self._answers.tolist())) < 2
        self.criterion_name = "log loss" if self._one_sided else "1 - AUC"
        self.module = TracingModel(TracingModelConfig.of(recipe.model, skill_count=corpus.codec.skill_count)).to(device)
        self.windows_per_epoch = self._histories.windows_per_epoch
        self.targets_per_window = self._histories.targets / self.windows_per_epoch
        self.tokens_per_window = max(1, round(self.targets_per_window))
        self.baseline = score(
            SkillRegression(corpus.codec.skill_count, corpus.train).predict(corpus.validation), self._answers
        )
        """What a logistic regression per skill reaches on the same attempts."""
        right = "right" if self._answers[0] else "wrong"
        one_sided = (
            f"every answer to be predicted of the validation learners is {right}, so AUC is 0.5 whatever the model "
            "says; the best weights are those with the lowest log loss"
        )
        self.description = "\n".join([
            *corpus.remarks,
            *([one_sided] if self._one_sided else []),
            f"{self.module.parameter_count:,} parameters, {corpus.codec.skill_count:,} skills, "
            f"{len(corpus.train):,} learners with {self._histories.targets:,} attempts to predict, "
            f"{self.windows_per_epoch:,} windows per epoch",
            f"validation: {len(corpus.validation):,} learners; "
            f"a logistic regression per skill has {_summary(self.baseline)}",
        ])  # fmt: skip

    @classmethod
    def open(cls, recipe: TracingRecipe, saved: Checkpoint | None) -> TracingTask:
        """See Task."""
        corpus = read_answers(recipe.corpus, recipe.run.seed)
        require_same_corpus(corpus.sha256, corpus.validation_sha256, saved)
        return cls(recipe, corpus)

    def windows(self, epoch: int, start: int) -> Iterator[HistoryWindow]:
        """The windows of an epoch, from window `start` on."""
        return self._histories.windows(epoch, start)

    def initial_state(self) -> RecurrentState:
        """Zeros. <float32>[B, H] each"""
        return self.module.initial_state(self.recipe.batches.learners)

    def loss(self, window: HistoryWindow, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The loss of a window <float32>[], and the state after it, cut from its history.

        Sums over the attempts are divided by the mean number of attempts of a window, not by this window's own: over
        an epoch every attempt weighs the same, however few learners are left at a batch's end.
        """
        logits, after = self.module(window.ids, self.initial_state() if window.first else state)  # [B, T, S]
        total = tracing_loss(logits.float(), window, self.recipe.loss)
        return total / self.targets_per_window, detach(after)

    def evaluate(self) -> Evaluation:
        """Predict the validation learners with the module's present weights."""
        self.module.eval()
        start, learners = partial(TorchForward, self.module), self._corpus.validation
        figures, moves = score(predict(start, learners), self._answers), steadiness(start, learners)
        summary = f"{_summary(figures)}, w1 {moves.w1:.4f}, w2 {moves.w2:.4f}, m1 {moves.m1:.3f}, m2 {moves.m2:.4f}"
        criterion = figures.log_loss if self._one_sided else 1.0 - figures.auc
        return Evaluation(criterion, figures.model_dump(), summary, figures.log_loss)

    def validation_data(self) -> ValidationData:
        """The validation learners' attempts."""
        histories = [torch.from_numpy(history) for history in self._corpus.validation]
        return ValidationData("tracing", self._corpus.sha256, histories)

    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        """See Task."""
        spec = InteractionCodecSpec()
        return {
            "codecs": {"skills": spec.model_dump()},
            "ports": dict.fromkeys(("skill", "correct", "probability"), "skills"),
            "head": ReadHead(from_="probability").model_dump(by_alias=True),
            "files": {spec.file: self._corpus.codec.to_json()},
            "validation": dict(evaluation.figures),
        }


def _summary(figures: TracingValidation) -> str:
    return f"AUC {figures.auc:.4f}, accuracy {figures.accuracy:.4f}, log loss {figures.log_loss:.4f}"
