"""`python -m training` on answers: what it says, what it leaves for export, and that it can be interrupted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from carousel.models.figures import TracingValidation
from carousel.models.manifest import Provenance
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.score import TorchForward, answers, predict
from carousel.models.tracing_score import auc, score
from carousel.training.__main__ import main
from carousel.training.corpus.answers import read_answers
from carousel.training.corpus.learners import simulate
from carousel.training.errors import RunError
from carousel.training.recipe import load_recipe
from carousel.training.run import TrainingRun
from carousel.training.trainer import BEST, LAST, Progress
from tests.trained import load_tracing_model

RECIPE = """
[run]
task = "tracing"
seed = 5
threads = 1
save_every_windows = 2

[corpus]
train = "{train}"
validation_fraction = 0.25

[model]
embedding_size = 6
hidden_size = 9

[batches]
learners = 4
window = 40

[schedule]
epochs = 2
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A recipe over the three-line histories of 40 made-up learners."""
    lines = []
    for history in simulate(40, 3).histories:
        skills, correct = history >> 1, history & 1
        lines += [str(len(history)), ",".join(map(str, skills)), ",".join(map(str, correct))]
    (tmp_path / "answers.csv").write_text("\n".join(lines))
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(train=tmp_path / "answers.csv"))
    return path


def test_command_traces_and_leaves_what_export_needs(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main([str(recipe_path), "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert "validation: 10 learners; a logistic regression per skill has AUC 0." in shown.out
    assert "epoch 2: train " in shown.out
    assert " 1 - AUC; weights in " in shown.out
    assert "answer/s" in shown.err

    best = read_checkpoint(output / BEST)
    model, codec = load_tracing_model(best)
    recipe = load_recipe(recipe_path)
    validation = read_answers(recipe.corpus, recipe.run.seed).validation
    seen = score(predict(partial(TorchForward, model), validation), answers(validation))
    assert TracingValidation(**best.header["validation"]) == TracingValidation(
        attempts=seen.attempts, auc=seen.auc, accuracy=seen.accuracy, log_loss=seen.log_loss
    )
    assert Provenance(**best.header["provenance"]).recipe == "tiny"
    assert codec.skills == tuple(map(str, range(codec.skill_count)))


def test_command_learns_what_the_regression_cannot(tmp_path: Path) -> None:
    """Two skills that are one: to fail at the first is to fail at the second, which counts per skill cannot tell."""
    random = np.random.default_rng(0)
    lines = []
    for _ in range(120):
        able = int(random.random() < 0.5)
        lines += ["4", "0,1,2,3", ",".join([str(able)] * 4)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    (tmp_path / "r.toml").write_text(RECIPE.format(train=tmp_path / "a.csv"))
    overrides = ["optimizer.learning_rate=2e-2", "schedule.epochs=10"]
    run = TrainingRun(load_recipe(tmp_path / "r.toml", overrides), tmp_path / "run", resume=False)
    run.trainer.run(Nobody())
    assert run.task.baseline.auc < 0.65
    assert run.task.evaluate().figures["auc"] > 0.95


@pytest.mark.slow
def test_network_comes_close_to_the_truth_of_made_up_learners(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        '[run]\ntask = "tracing"\nthreads = 1\n[corpus]\nkind = "generated"\nlearners = 900\n'
        "[model]\nembedding_size = 16\nhidden_size = 48\n[optimizer]\nlearning_rate = 1e-2\n[schedule]\nepochs = 8\n"
    )
    recipe = load_recipe(tmp_path / "r.toml")
    run = TrainingRun(recipe, tmp_path / "run", resume=False)
    run.trainer.run(Nobody())
    cohort = simulate(900, recipe.corpus.seed)
    truth = {
        history.tobytes(): chances for history, chances in zip(cohort.histories, cohort.probabilities, strict=True)
    }
    validation = read_answers(recipe.corpus, recipe.run.seed).validation
    oracle = auc(np.concatenate([truth[history.tobytes()][1:] for history in validation]), answers(validation))
    reached = run.task.evaluate().figures["auc"]
    assert run.task.baseline.auc + 0.01 < reached < oracle + 0.005
    assert reached - 0.5 > 0.85 * (oracle - 0.5)


class Nobody:
    """Watches in silence."""

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None: ...

    def on_validation(self, *_: object) -> None: ...


class Interrupted(Exception):
    pass


class Interrupter(Nobody):
    """Ends a run after so many steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        if progress.step == self._step:
            raise Interrupted


def test_tracing_resumption_is_bit_for_bit(recipe_path: Path, tmp_path: Path) -> None:
    overrides = [
        "model.input_dropout=0.2",
        "model.output_dropout=0.3",
        "averaging.kind=ema",
        "loss.reconstruction=0.1",
        "loss.waviness_l2=0.5",
        "schedule.warmup_steps=5",
    ]

    def run(directory: str, resume: bool, watch: Nobody) -> int:
        recipe = load_recipe(recipe_path, overrides)
        return TrainingRun(recipe, tmp_path / directory, resume=resume).trainer.run(watch).step

    steps = run("whole", False, Nobody())
    for step in (steps // 3, steps // 2 + 3, steps - 1):
        with pytest.raises(Interrupted):
            run("cut", True, Interrupter(step))
    assert run("cut", True, Nobody()) == steps
    for name in (LAST, BEST):
        a, b = read_checkpoint(tmp_path / "cut" / name), read_checkpoint(tmp_path / "whole" / name)
        assert a.header == b.header
        assert a.tensors.keys() == b.tensors.keys()
        assert [key for key in a.tensors if not torch.equal(a.tensors[key], b.tensors[key])] == []


def test_tracing_run_refuses_to_resume_with_other_answers(recipe_path: Path, tmp_path: Path) -> None:
    TrainingRun(load_recipe(recipe_path), tmp_path / "run", resume=False).trainer.run(Nobody())
    path = tmp_path / "answers.csv"
    path.write_text(path.read_text() + "\n2\n0,1\n1,1\n")
    with pytest.raises(RunError, match=r"^the corpus's corpus_sha256 is [0-9a-f]{64}, but the run was started with"):
        TrainingRun(load_recipe(recipe_path), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["corpus.train=none.csv"], "error: corpus.train: there is no file none.csv"),
        (["corpus.kind=rows"], "error: {train}: has no column 'user_id'; its columns are "),
        (["corpus.kind=pykt"], "error: {train}: has no column 'uid'; its columns are "),
        (["batches.lanes=3"], "error: batches.lanes is not a key of a recipe"),
        (["optimizer.kind=sgd", "optimizer.learning_rate=1e38", "optimizer.clip_norm=0.0"], "error: the loss is "),
    ],
)
def test_command_answers_a_mistake_about_answers_with_one_sentence(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main([str(recipe_path), *arguments, "--output", str(tmp_path / "run")]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith(sentence.format(train=tmp_path / "answers.csv"))
