"""`python -m training` as somebody at a terminal meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from carousel.models.figures import LanguageValidation
from carousel.models.manifest import Provenance
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.score import TorchForward, score_text
from carousel.models.nn.validation import read_validation
from carousel.training.__main__ import main
from carousel.training.corpus.encoding import encode_text
from tests.trained import load_language_model


def test_command_trains_a_model_that_the_next_room_can_load(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main([str(recipe_path), "schedule.epochs=3", "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert "epoch 3: train " in shown.out
    assert "nats/token, perplexity " in shown.out
    assert "loss=" in shown.err
    assert "tok/s" in shown.err

    best = read_checkpoint(output / "best.safetensors")
    provenance = Provenance(**best.header["provenance"])
    validation = LanguageValidation(**best.header["validation"])
    model, codec = load_language_model(best)
    assert provenance.recipe == "tiny"
    assert provenance.cell == "lstm"
    assert provenance.parameters == model.parameter_count
    text = (recipe_path.parent / "valid.txt").read_text()
    assert validation.perplexity == score_text(TorchForward(model, 1), encode_text(codec, text), len(text)).perplexity

    held_out = read_validation(output / "validation.safetensors")
    assert (held_out.task, held_out.corpus_sha256) == ("language", provenance.corpus_sha256)
    assert [ids.tolist() for ids in held_out.sequences] == [encode_text(codec, text).tolist()]
    assert held_out.characters == len(text)

    events = EventAccumulator(str(output)).Reload()
    figures = [event.value for event in events.Scalars("validation/perplexity")]
    assert len(figures) == 3
    assert min(figures) == pytest.approx(validation.perplexity)
    assert len(events.Scalars("train/loss")) == provenance.steps


def test_command_learns(recipe_path: Path, tmp_path: Path) -> None:
    arguments = ["model.hidden_size=32", "optimizer.learning_rate=2e-2", "schedule.epochs=12"]
    assert main([str(recipe_path), *arguments, "--output", str(tmp_path / "run")]) == 0
    model, codec = load_language_model(read_checkpoint(tmp_path / "run" / "best.safetensors"))
    text = (recipe_path.parent / "valid.txt").read_text()
    guess = torch.log(torch.tensor(codec.vocabulary_size)).item()
    assert (
        score_text(TorchForward(model, 1), encode_text(codec, text), len(text)).nats_per_token < 0.8 * guess
    )  # letters alone give 0.93


def test_command_resumes_and_then_has_nothing_to_do(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(recipe_path), "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    (tmp_path / "run" / "validation.safetensors").unlink()  # as runs left none before export asked for it
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "validation.safetensors").is_file()
    assert "is finished; its best weights are" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["batches.lane=2"], "error: batches.lane is not a key of a recipe"),
        (["corpus.train=none.txt"], "error: corpus.train: there is no file none.txt"),
        (["batches.window=5000"], "error: the training text is"),
        (["corpus.validation=short.txt"], "error: the validation text is too short (tokens: 1)"),
        (["optimizer.kind=sgd", "optimizer.learning_rate=1e38", "optimizer.clip_norm=0.0"], "error: the loss is "),
    ],
)
def test_command_answers_a_mistake_with_one_sentence(
    recipe_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("t")
    assert main([str(recipe_path), *arguments, "--output", "run"]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith(sentence)


def test_command_writes_to_runs_by_default(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(recipe_path), "schedule.epochs=1"]) == 0
    assert Path("runs/tiny/best.safetensors").exists()


def test_command_refuses_a_directory_that_cannot_be(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main([str(recipe_path), "--output", str(output)]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path / 'file'} is no directory; give another with --output\n"
    assert (tmp_path / "file").read_text() == "mine"
