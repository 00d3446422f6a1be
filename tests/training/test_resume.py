"""A run that was killed and resumed ends, bit for bit, where an uninterrupted one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carousel.models.nn.checkpoint import read_checkpoint, write_checkpoint
from carousel.training.errors import RunError
from carousel.training.recipe import load_recipe
from carousel.training.run import TrainingRun
from carousel.training.task import Evaluation
from carousel.training.trainer import BEST, LAST, Progress, Trainer

ROOT = Path(__file__).parents[2]

EVERYTHING_RANDOM = [
    "run.precision=bf16",
    "model.embedding_dropout=0.1",
    "model.input_dropout=0.2",
    "model.hidden_dropout=0.3",
    "model.output_dropout=0.4",
    "model.weight_drop=0.5",
    "averaging.kind=ema",
    "averaging.decay=0.9",
    "schedule.warmup_steps=5",
    "optimizer.weight_decay=0.1",
]

KILLED = """
import os, signal, sys
from carousel.training import __main__ as command
from carousel.training.trainer import Trainer

moment, *arguments = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
on_window, save = command.Console.on_window, Trainer.save

def kill_within_an_epoch(console, progress, *rest):
    on_window(console, progress, *rest)
    if progress.step == 5:
        kill()

def kill_between_best_and_last(trainer):
    if trainer.progress.window == 0:
        kill()
    save(trainer)

if moment == "window":
    command.Console.on_window = kill_within_an_epoch
else:
    Trainer.save = kill_between_best_and_last
sys.exit(command.main(arguments))
"""


class Nobody:
    """Watches in silence."""

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None: ...

    def on_validation(self, progress: Progress, train_loss: float, evaluation: Evaluation, is_best: bool) -> None: ...


class Interrupted(Exception):
    pass


class Interrupter(Nobody):
    """Ends a run after so many steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        if progress.step == self._step:
            raise Interrupted


def run(
    recipe: Path, overrides: list[str], directory: Path, *, resume: bool = False, watch: Nobody | None = None
) -> int:
    """Run to the end, or until `watch` ends it; returns the steps made."""
    return TrainingRun(load_recipe(recipe, overrides), directory, resume=resume).trainer.run(watch or Nobody()).step


def assert_equal_files(seen: Path, expected: Path) -> None:
    for name in (LAST, BEST):
        a, b = read_checkpoint(seen / name), read_checkpoint(expected / name)
        assert a.header == b.header
        assert a.tensors.keys() == b.tensors.keys()
        assert [key for key in a.tensors if not torch.equal(a.tensors[key], b.tensors[key])] == []


def killed(moment: str, recipe: Path, directory: Path, *arguments: str) -> None:
    command = [sys.executable, "-c", KILLED, moment, str(recipe), *EVERYTHING_RANDOM, "--output", str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.slow
def test_resumption_after_kill_9_is_bit_for_bit(recipe_path: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = run(recipe_path, EVERYTHING_RANDOM, whole)
    windows = steps // 2
    assert windows > 6  # step 5 is within the first epoch, and the window saved last is not its last

    killed("window", recipe_path, cut)
    assert read_checkpoint(cut / LAST).header["progress"]["window"] == 4
    killed("epoch end", recipe_path, cut, "--resume")
    assert (cut / BEST).exists()
    assert 0 < read_checkpoint(cut / LAST).header["progress"]["window"] < windows
    run(recipe_path, EVERYTHING_RANDOM, cut, resume=True)
    assert_equal_files(cut, whole)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "model.cell=gru",
            "optimizer.kind=sgd",
            "optimizer.learning_rate=60.0",
            "averaging.kind=nt-asgd",
            "schedule.shape=constant",
        ],
        ["model.tied=true", "model.locked=false", "model.output_dropout=0.5", "tokenizer.kind=word"],
        ["model.cell=elman", "model.weight_drop=0.3", "model.hidden_dropout=0.2", "averaging.kind=ema"],
        ["tokenizer.kind=bpe", "tokenizer.vocabulary_size=270", "model.weight_drop=0.5", "averaging.kind=ema"],
    ],
    ids=["nt-asgd", "tied", "elman", "bpe"],
)
def test_resumption_is_bit_for_bit(recipe_path: Path, tmp_path: Path, overrides: list[str]) -> None:
    overrides = [*overrides, "averaging.patience=1", "batches.window=5", "schedule.epochs=5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = run(recipe_path, overrides, whole)
    averages = "averaging.kind=ema" in overrides or "averaging.kind=nt-asgd" in overrides
    assert read_checkpoint(whole / LAST).header["averaging"]["active"] == averages
    for step in (steps // 3, steps - 1):
        with pytest.raises(Interrupted):
            run(recipe_path, overrides, cut, resume=True, watch=Interrupter(step))
    run(recipe_path, overrides, cut, resume=True)
    assert_equal_files(cut, whole)


def test_run_without_a_checkpoint_resumes_from_the_beginning(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "a", resume=True)
    run(recipe_path, [], tmp_path / "b")
    assert_equal_files(tmp_path / "a", tmp_path / "b")


def test_run_that_finished_has_nothing_left_to_do(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "run")
    before = (tmp_path / "run" / LAST).stat().st_mtime_ns
    trainer: Trainer = TrainingRun(load_recipe(recipe_path), tmp_path / "run", resume=True).trainer
    assert trainer.finished
    trainer.run(Nobody())
    assert (tmp_path / "run" / LAST).stat().st_mtime_ns == before


def test_run_refuses_to_overwrite_a_started_one(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "run")
    with pytest.raises(RunError, match=r"already holds last\.safetensors of an earlier run; add --resume"):
        run(recipe_path, [], tmp_path / "run")


def test_run_refuses_to_resume_with_another_recipe(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "run")
    with pytest.raises(RunError, match=r"^batches\.window is 12, but the run in .* was started with 13; resume with"):
        run(recipe_path, ["batches.window=12"], tmp_path / "run", resume=True)


@pytest.mark.parametrize(("name", "key"), [("train.txt", "corpus_sha256"), ("valid.txt", "validation_sha256")])
def test_run_refuses_to_resume_with_another_text(recipe_path: Path, tmp_path: Path, name: str, key: str) -> None:
    run(recipe_path, [], tmp_path / "run")
    with (recipe_path.parent / name).open("a") as file:
        file.write("more")
    with pytest.raises(RunError, match=rf"the corpus's {key} is [0-9a-f]{{64}}, but the run was started with"):
        run(recipe_path, [], tmp_path / "run", resume=True)


def test_run_refuses_to_resume_from_weights_alone(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "run")
    write_checkpoint(tmp_path / "run" / LAST, read_checkpoint(tmp_path / "run" / BEST))
    with pytest.raises(RunError, match="holds weights only"):
        run(recipe_path, [], tmp_path / "run", resume=True)


def test_run_refuses_to_start_over_on_a_best_checkpoint(recipe_path: Path, tmp_path: Path) -> None:
    run(recipe_path, [], tmp_path / "run")
    (tmp_path / "run" / LAST).unlink()
    with pytest.raises(RunError, match=r"holds best\.safetensors but no last\.safetensors to go on from"):
        run(recipe_path, [], tmp_path / "run", resume=True)
