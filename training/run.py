"""A run: a recipe carried out in a directory of its own, from the beginning or from where it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from carousel.models.nn.validation import VALIDATION, write_validation
from carousel.training.errors import RunError
from carousel.training.recipe import first_difference
from carousel.training.sections import Recipe
from carousel.training.task import TASKS
from carousel.training.trainer import BEST, LAST, Trainer


class TrainingRun:
    """A run, ready to go.

    Args:
        recipe: what to do.
        directory: where the checkpoints go.
        resume: go on from the directory's last checkpoint; from the beginning where none was written yet.

    Raises:
        RunError: the directory holds a run that would be overwritten, or one of another recipe or corpus.
        CorpusError: the files cannot be used.
    """

    def __init__(self, recipe: Recipe, directory: Path, *, resume: bool) -> None:
        _check_directory(directory)
        saved = _saved(directory, resume)
        if saved is not None:
            _check_recipe(recipe, saved, directory)
        if recipe.run.device == "cuda" and not torch.cuda.is_available():
            raise RunError("run.device is 'cuda', but torch finds no CUDA device; allowed here is 'cpu'")
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)
        torch.manual_seed(recipe.run.seed)
        self.recipe = recipe
        self.directory = directory
        self.task = TASKS[recipe.run.task].open(recipe, saved)
        self.trainer = Trainer(self.task, recipe, directory)
        if saved is not None:
            self.trainer.restore(saved)
        directory.mkdir(parents=True, exist_ok=True)
        write_validation(directory / VALIDATION, self.task.validation_data())


def _check_directory(directory: Path) -> None:
    """See before the work that a run's directory can be made, and written to."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RunError(f"{nearest} is no directory; give another with --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"{nearest} cannot be written to; give another directory with --output")


def _saved(directory: Path, resume: bool) -> Checkpoint | None:
    if not resume:
        for name in (LAST, BEST):
            if (directory / name).exists():
                raise RunError(
                    f"{directory} already holds {name} of an earlier run; "
                    "add --resume to go on with it, or give another directory with --output"
                )
        return None
    path = directory / LAST
    if not path.exists():
        if (directory / BEST).exists():
            raise RunError(
                f"{directory} holds {BEST} but no {LAST} to go on from; give another directory with --output"
            )
        return None
    saved = read_checkpoint(path)
    if "progress" not in saved.header:
        raise RunError(f"{path} holds weights only; a run is resumed from the {LAST} that it wrote itself")
    return saved


def _check_recipe(recipe: Recipe, saved: Checkpoint, directory: Path) -> None:
    difference = first_difference(recipe, saved.header["recipe"])
    if difference is not None:
        key, before, now = difference
        raise RunError(
            f"{key} is {now!r}, but the run in {directory} was started with {before!r}; "
            "resume with the recipe it was started with, or start anew with another --output"
        )
