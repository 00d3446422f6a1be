"""Knowledge tracing: predict whether a learner's next attempt is right, from all attempts before it.

Axes: B learners, T attempts, S skills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.nn.recurrent import RecurrentState, detach
from carousel.models.nn.tracing import TracingModel
from carousel.models.nn.validation import ValidationData
from carousel.models.tracing_score import TracingScore, score
from carousel.training.baseline import SkillRegression
from carousel.training.corpus.answers import AnswerCorpus
from carousel.training.errors import CorpusError
from carousel.training.histories import Histories, HistoryWindow
from carousel.training.recipe import TracingRecipe
from carousel.training.sections import TracingLoss
from carousel.training.steadiness import steadiness
from carousel.training.tracing_score import answers, predict
from carousel.training.trainer import Evaluation


class TracingTask:
    """A tracing model, its training learners as batches, and its validation learners."""

    unit = "answer"

    def __init__(self, recipe: TracingRecipe, corpus: AnswerCorpus) -> None:
        self._recipe = recipe
        self._corpus = corpus
        device = torch.device(recipe.run.device)
        batches = recipe.batches
        self._histories = Histories(corpus.train, batches.learners, batches.window, recipe.run.seed, device)
        self._answers = answers(corpus.validation)
        if len(self._answers) == 0:
            raise CorpusError("no validation learner has two attempts; one to read and one to predict are needed")
        self._one_sided = len(set(self._answers.tolist())) < 2
        self.criterion_name = "log loss" if self._one_sided else "1 - AUC"
        self.module = TracingModel(recipe.model.config(corpus.codec.skill_count)).to(device)
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

    def windows(self, epoch: int, start: int) -> Iterator[HistoryWindow]:
        """The windows of an epoch, from window `start` on."""
        return self._histories.windows(epoch, start)

    def initial_state(self) -> RecurrentState:
        """Zeros. <float32>[B, H] each"""
        return self.module.initial_state(self._recipe.batches.learners)

    def loss(self, window: HistoryWindow, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The loss of a window <float32>[], and the state after it, cut from its history.

        Sums over the attempts are divided by the mean number of attempts of a window, not by this window's own: over
        an epoch every attempt weighs the same, however few learners are left at a batch's end.
        """
        logits, after = self.module(window.ids, self.initial_state() if window.first else state)  # [B, T, S]
        total = tracing_loss(logits.float(), window, self._recipe.loss)
        return total / self.targets_per_window, detach(after)

    def evaluate(self) -> Evaluation:
        """Predict the validation learners with the module's present weights."""
        figures = score(predict(self.module, self._corpus.validation), self._answers)
        moves = steadiness(self.module, self._corpus.validation)
        summary = f"{_summary(figures)}, w1 {moves.w1:.4f}, w2 {moves.w2:.4f}, m1 {moves.m1:.3f}, m2 {moves.m2:.4f}"
        criterion = figures.log_loss if self._one_sided else 1.0 - figures.auc
        return Evaluation(criterion, asdict(figures), summary, figures.log_loss)

    def validation_data(self) -> ValidationData:
        """The validation learners' attempts."""
        histories = [torch.from_numpy(history) for history in self._corpus.validation]
        return ValidationData("tracing", self._corpus.sha256, histories)

    def resume_header(self) -> dict[str, Any]:
        """What a resumption must find again: the corpus by digest."""
        return {
            "task": "tracing",
            "corpus_sha256": self._corpus.sha256,
            "validation_sha256": self._corpus.validation_sha256,
        }

    def export_header(self, evaluation: Evaluation, steps: int) -> dict[str, Any]:
        """What the export room needs beside the weights."""
        return {
            "task": "tracing",
            "model": self.module.config.to_json(),
            "skills": self._corpus.codec.to_json(),
            "validation": dict(evaluation.figures),
            "provenance": {
                "recipe": self._recipe.name,
                "corpus_sha256": self._corpus.sha256,
                "parameters": self.module.parameter_count,
                "cell": self.module.config.cell,
                "steps": steps,
            },
        }


def tracing_loss(logits: Tensor, window: HistoryWindow, terms: TracingLoss) -> Tensor:
    """Binary cross-entropy of the next answers in nats, summed over the attempts present, and DKT+'s terms.

    DKT+ (Yeung & Yeung 2018, arXiv:1806.02180) adds the cross-entropy of the answer just seen, and the mean over
    skills of how far probabilities move from one attempt to the next, absolute and squared. Moves across a window's
    edge are not counted.

    Args:
        logits: after each attempt, of the next one at every skill. <float32>[B, T, S]
        window: the attempts.
        terms: the weights of DKT+'s terms, each 0 where it is left out.

    Returns:
        <float32>[]
    """
    total = _cross_entropy(logits, window.targets, window.present)
    if terms.reconstruction:
        total = total + terms.reconstruction * _cross_entropy(logits, window.ids, window.present)
    if terms.waviness_l1 or terms.waviness_l2:
        probability = torch.sigmoid(logits)
        move = (probability[:, 1:] - probability[:, :-1]) * window.present[:, 1:, None]  # [B, T - 1, S]
        total = total + terms.waviness_l1 * move.abs().mean(2).sum() + terms.waviness_l2 * move.square().mean(2).sum()
    return total


def _cross_entropy(logits: Tensor, attempts: Tensor, present: Tensor) -> Tensor:
    asked = logits.gather(2, (attempts >> 1)[..., None])[..., 0]  # [B, T]
    losses = functional.binary_cross_entropy_with_logits(asked, (attempts & 1).float(), reduction="none")
    return (losses * present).sum()


def _summary(figures: TracingScore) -> str:
    return f"AUC {figures.auc:.4f}, accuracy {figures.accuracy:.4f}, log loss {figures.log_loss:.4f}"
