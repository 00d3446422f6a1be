"""A run: a recipe carried out in a directory of its own, from the beginning or from where it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from carousel.models.codec.text import TextCodec
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from carousel.models.nn.validation import VALIDATION, write_validation
from carousel.training.corpus.album import read_albums
from carousel.training.corpus.answers import read_answers
from carousel.training.corpus.text import read_corpus
from carousel.training.corpus.tokenizer import build_codec
from carousel.training.errors import RunError
from carousel.training.recipe import CaptioningRecipe, LanguageRecipe, Recipe, TracingRecipe, first_difference
from carousel.training.tasks.captioning import CaptioningTask
from carousel.training.tasks.language import LanguageTask
from carousel.training.tasks.tracing import TracingTask
from carousel.training.trainer import BEST, LAST, Trainer

Task = LanguageTask | TracingTask | CaptioningTask


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
        self.task = _task(recipe, saved)
        self.trainer: Trainer[Any] = Trainer(self.task, recipe, directory)
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


def _task(recipe: Recipe, saved: Checkpoint | None) -> Task:
    match recipe:
        case LanguageRecipe():
            return _language_task(recipe, saved)
        case TracingRecipe():
            return _tracing_task(recipe, saved)
        case CaptioningRecipe():
            return _captioning_task(recipe, saved)


def _language_task(recipe: LanguageRecipe, saved: Checkpoint | None) -> LanguageTask:
    files = recipe.corpus
    keep = files.line_ends == "keep"
    corpus = read_corpus(files.train, files.validation, files.validation_fraction, keep_line_ends=keep)
    if saved is None:
        return LanguageTask(recipe, corpus, build_codec(recipe.tokenizer, corpus.train))
    _check_corpus(corpus.sha256, corpus.validation_sha256, saved)
    return LanguageTask(recipe, corpus, TextCodec.from_json(saved.header["tokenizer"]))


def _tracing_task(recipe: TracingRecipe, saved: Checkpoint | None) -> TracingTask:
    corpus = read_answers(recipe.corpus, recipe.run.seed)
    if saved is not None:
        _check_corpus(corpus.sha256, corpus.validation_sha256, saved)
    return TracingTask(recipe, corpus)


def _captioning_task(recipe: CaptioningRecipe, saved: Checkpoint | None) -> CaptioningTask:
    train, validation = read_albums(recipe.corpus)
    if saved is not None:
        _check_corpus(train.sha256, validation.sha256, saved)
    task = CaptioningTask(recipe, train, validation)
    if saved is not None and task.resume_header()["encoder"] != saved.header["encoder"]:
        raise RunError(
            "features.train is of another encoder than the run was started with; "
            "restore the files to resume, or start anew with another --output"
        )
    return task


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


def _check_corpus(train_sha256: str, validation_sha256: str, saved: Checkpoint) -> None:
    for key, seen in (("corpus_sha256", train_sha256), ("validation_sha256", validation_sha256)):
        if seen != saved.header[key]:
            raise RunError(
                f"the corpus's {key} is {seen}, but the run was started with {saved.header[key]}; "
                "restore the files to resume, or start anew with another --output"
            )
