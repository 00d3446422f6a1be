"""The training loop. It knows windows, losses and one figure to improve; what they mean is the task's affair.

A run's directory holds two checkpoints, each replaced by one atomic rename:
    last.safetensors    everything that the next window depends on, so that a resumed run computes what an
                        uninterrupted one would have, bit for bit (on CPU, with the same number of threads)
    best.safetensors    the weights that validated best, for export
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
from carousel.training.autocast import autocast
from carousel.training.averaging import WeightAverage
from carousel.training.errors import RunError
from carousel.training.optim import build_optimizer, clip_gradients, learning_rate, named_state, restore_state
from carousel.training.sections import Recipe
from carousel.training.task import Evaluation, Task

LAST = "last.safetensors"
BEST = "best.safetensors"


@dataclass(slots=True)
class Progress:
    """Where a run stands. All of it is in last.safetensors."""

    epoch: int = 0
    """Epochs completed."""
    window: int = 0
    """Windows completed in the present epoch."""
    step: int = 0
    """Updates made."""
    loss_sum: float = 0.0
    """Over the windows of the present epoch."""
    best: float = math.inf
    """The lowest criterion so far."""
    best_nats: float = math.inf
    """The fewest nats of the validations that had it."""
    stale: int = 0
    """Validations since then."""


class Observer(Protocol):
    """Somebody who watches a run."""

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        """An update was made."""

    def on_validation(self, progress: Progress, train_loss: float, evaluation: Evaluation, is_best: bool) -> None:
        """An epoch has ended and was validated."""


class Trainer:
    """Trains a task as a recipe says, in a run directory."""

    def __init__(self, task: Task[Any, Any], recipe: Recipe, directory: Path) -> None:
        self._task = task
        self._recipe = recipe
        self._directory = directory
        self._optimizer = build_optimizer(recipe.optimizer, task.module)
        self._average = WeightAverage(recipe.averaging, task.module)
        self._state = task.initial_state()
        self._total_steps = recipe.schedule.epochs * task.windows_per_epoch
        self.progress = Progress()

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or patience has run out."""
        patience = self._recipe.stopping.patience
        return self.progress.epoch >= self._recipe.schedule.epochs or 0 < patience <= self.progress.stale

    def run(self, observer: Observer) -> Progress:
        """Train until finished.

        Raises:
            RunError: the loss, or a validation's figure, is no longer a number.
        """
        if self.progress.step == 0:
            self.save()  # so that there is no best.safetensors without a last.safetensors
        while not self.finished:
            self._run_epoch(observer)
        return self.progress

    def _run_epoch(self, observer: Observer) -> None:
        progress = self.progress
        self._task.module.train()
        for window in self._task.windows(progress.epoch, progress.window):
            self._update(window, observer)
            # An epoch's end is saved after its validation.
            due = progress.window % self._recipe.run.save_every_windows == 0
            if due and progress.window < self._task.windows_per_epoch:
                self.save()
        self._validate(observer)
        self.save()

    def _update(self, window: object, observer: Observer) -> None:
        progress, settings = self.progress, self._recipe.optimizer
        rate = learning_rate(settings.learning_rate, self._recipe.schedule, progress.step, self._total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with autocast(self._recipe.run):
            loss, self._state = self._task.loss(window, self._state)
        value = loss.item()
        if not math.isfinite(value):
            raise RunError(
                f"the loss is {value} at step {progress.step:,} (epoch {progress.epoch + 1}); lower "
                "optimizer.learning_rate or lengthen schedule.warmup_steps"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self._task.module.parameters(), settings)
        self._optimizer.step()
        self._average.update()
        progress.step += 1
        progress.window += 1
        progress.loss_sum += value
        observer.on_window(progress, value, rate)

    def _validate(self, observer: Observer) -> None:
        """Validate at an epoch's end, keep the weights if they are the best, and turn to the next epoch.

        best.safetensors is written before last.safetensors: a kill between the two repeats the validation, which
        gives the same figure and writes the same file again. The other order could lose a best for good.
        """
        progress = self.progress
        with self._average.applied():
            evaluation = self._task.evaluate()
            if not (math.isfinite(evaluation.criterion) and math.isfinite(evaluation.nats)):
                raise RunError(
                    f"validation after epoch {progress.epoch + 1} gives no number ({evaluation.summary}); lower "
                    "optimizer.learning_rate or lengthen schedule.warmup_steps"
                )
            is_best = (evaluation.criterion, evaluation.nats) < (progress.best, progress.best_nats)
            if is_best:
                header = self._task.export_header(evaluation, progress.step)
                header["recipe"] = self._recipe.model_dump(mode="json")
                tensors = {f"model.{name}": value for name, value in self._task.module.state_dict().items()}
                write_checkpoint(self._directory / BEST, Checkpoint(tensors, header))
        self._average.observe(evaluation.criterion)
        train_loss = progress.loss_sum / max(progress.window, 1)
        if is_best:
            progress.best, progress.best_nats = evaluation.criterion, evaluation.nats
        progress.stale = 0 if is_best else progress.stale + 1
        progress.epoch += 1
        progress.window, progress.loss_sum = 0, 0.0
        self._state = self._task.initial_state()
        observer.on_validation(progress, train_loss, evaluation, is_best)

    def save(self) -> None:
        """Write last.safetensors."""
        module, average = self._task.module, self._average
        tensors: dict[str, Tensor] = {f"parameters.{name}": value for name, value in module.named_parameters()}
        tensors |= {f"average.{name}": value for name, value in average.tensors.items()}
        tensors |= {f"optimizer.{name}": value for name, value in named_state(self._optimizer, module).items()}
        tensors |= {f"state.{name}": value for name, value in self._state.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._recipe.run.device == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        header = self._task.resume_header() | {
            "recipe": self._recipe.model_dump(mode="json"),
            "progress": asdict(self.progress),
            "averaging": {"steps": average.steps, "history": average.history, "active": average.active},
        }
        write_checkpoint(self._directory / LAST, Checkpoint(tensors, header))

    def restore(self, saved: Checkpoint) -> None:
        """Go on from last.safetensors.

        Tensors are copied: those read from a file may lie at any address, and alignment can decide the last bit of
        a vectorised sum.
        """
        module = self._task.module
        parameters = saved.group("parameters")
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(parameters[name])
        self._average.restore(saved.group("average"), **saved.header["averaging"])
        restore_state(self._optimizer, module, saved.group("optimizer"))
        fresh = self._task.initial_state()
        self._state = {name: value.copy_(saved.tensors[f"state.{name}"]) for name, value in fresh.items()}
        torch.set_rng_state(saved.tensors["random.cpu"].clone())
        if self._recipe.run.device == "cuda":
            torch.cuda.set_rng_state(saved.tensors["random.cuda"].clone())
        self.progress = Progress(**saved.header["progress"])
