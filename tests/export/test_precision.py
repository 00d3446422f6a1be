"""int8 is judged on the run's own validation data, measured as training measures, and refused when it is worse."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from carousel.export import making as making_module
from carousel.export.__main__ import main
from carousel.export.forward import GraphForward
from carousel.export.measure import MEASURES
from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step
from carousel.export.precision import WorseInt8, judge
from carousel.export.progress import Progress
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle
from carousel.models.errors import CheckpointError
from carousel.models.figures import CaptioningValidation, TracingValidation
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from carousel.models.nn.score import TorchForward, answers, predict, score_text
from carousel.models.nn.validation import ValidationData, read_validation, write_validation
from carousel.models.tracing_score import score as tracing_score
from tests.trained import load_language_model, load_tracing_model

CORPUS = "0" * 64


def int8_of(step):
    return int8_step(export_step(step))[0]


def language_data(length: int = 301) -> ValidationData:
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 13, length))
    return ValidationData("language", CORPUS, [ids], characters=length + 40)


def tracing_data() -> ValidationData:
    random = np.random.default_rng(3)
    lengths = [*range(1, 150, 7), 290]
    return ValidationData("tracing", CORPUS, [torch.from_numpy(random.integers(0, 10, length)) for length in lengths])


def language_figures(forward, data: ValidationData):
    return score_text(forward, data.sequences[0], data.characters)


def tracing_figures(start, data: ValidationData):
    histories = [sequence.numpy() for sequence in data.sequences]
    return tracing_score(predict(start, histories), answers(histories))


def recorded(path: Path, **validation: float) -> None:
    """Put figures into the checkpoint's header, as training would have."""
    read = read_checkpoint(path)
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, "validation": validation}))


@pytest.fixture
def language_run(make_checkpoint, tmp_path: Path) -> Path:
    """A run directory as training leaves it."""
    (tmp_path / "text").mkdir()
    path = make_checkpoint(tmp_path / "text" / "best.safetensors", layers=1)
    data = language_data()
    model, _ = load_language_model(read_checkpoint(path))
    recorded(path, **score_text(TorchForward(model, 1), data.sequences[0], data.characters).model_dump())
    write_validation(path.parent / "validation.safetensors", data)
    return path.parent


@pytest.fixture
def tracing_run(make_tracing_checkpoint, tmp_path: Path) -> Path:
    (tmp_path / "learners").mkdir()
    path = make_tracing_checkpoint(tmp_path / "learners" / "best.safetensors")
    data = tracing_data()
    model, _ = load_tracing_model(read_checkpoint(path))
    recorded(path, **tracing_figures(lambda rows: TorchForward(model, rows), data).model_dump())
    write_validation(path.parent / "validation.safetensors", data)
    return path.parent


def test_validation_data_read_back_are_what_was_written(tmp_path: Path) -> None:
    data = tracing_data()
    write_validation(tmp_path / "v.safetensors", data)
    read = read_validation(tmp_path / "v.safetensors")
    assert (read.task, read.corpus_sha256, read.characters) == ("tracing", CORPUS, 0)
    assert [part.tolist() for part in read.sequences] == [part.tolist() for part in data.sequences]


def test_validation_data_of_another_kind_are_refused(make_checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not hold validation data"):
        read_validation(make_checkpoint(tmp_path / "best.safetensors"))


def test_figures_of_learners_are_trainings_own(tracing_run: Path) -> None:
    path = tracing_run / "best.safetensors"
    model, _ = load_tracing_model(read_checkpoint(path))
    measured = tracing_figures(lambda rows: TorchForward(model, rows), tracing_data())
    assert measured.model_dump() == pytest.approx(read_checkpoint(path).header["validation"], rel=1e-6)


def test_figures_of_a_text_are_trainings_own(language_run: Path) -> None:
    path = language_run / "best.safetensors"
    model, _ = load_language_model(read_checkpoint(path))
    measured = language_figures(TorchForward(model, 1), language_data())
    assert measured.model_dump() == pytest.approx(read_checkpoint(path).header["validation"], rel=1e-6)


def test_int8_export_records_the_figures_before_and_after(language_run: Path, tmp_path: Path) -> None:
    done = export_checkpoint(language_run, tmp_path / "r", "m", precision="int8", max_worsening=0.5)
    bundle = open_bundle(done.bundle)
    manifest, trained = bundle.manifest, read_checkpoint(language_run / "best.safetensors").header["validation"]
    assert manifest.precision == "int8"
    assert manifest.figures.fp32 == done.figures.fp32
    assert manifest.figures.worsening == done.figures.worsening
    assert manifest.figures.fp32 == pytest.approx(trained, rel=1e-6)
    assert (manifest.figures.measure, manifest.figures.allowed_worsening) == ("relative perplexity", 0.5)
    graph = bundle.files["step.onnx"]
    model, _ = load_language_model(read_checkpoint(language_run / "best.safetensors"))
    served = language_figures(GraphForward(graph, model.step_module(), 1), language_data())
    assert manifest.figures.served == served.model_dump()
    assert served.perplexity != pytest.approx(trained["perplexity"], rel=1e-6)
    change = served.perplexity / trained["perplexity"] - 1
    assert manifest.figures.worsening == pytest.approx(change, abs=1e-6)
    assert sorted(path.name for path in done.bundle.iterdir()) == [
        "manifest.json",
        "prefill.onnx",
        "step.onnx",
        "tokenizer.json",
    ]


class Told(Progress):
    """What an export has said of how far it is: each stage, its units, and those that were done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, str]] = []
        self.done: list[int] = []

    def stage(self, what: str, total: int = 0, unit: str = "") -> None:
        self.stages.append((what, total, unit))
        self.done.append(0)

    def advance(self, count: int) -> None:
        self.done[-1] += count


@pytest.mark.parametrize(("kind", "total", "unit"), [("language", 300, "tokens"), ("tracing", None, "attempts")])
def test_int8_export_says_how_far_it_is(request, tmp_path: Path, kind: str, total: int | None, unit: str) -> None:
    told = Told()
    run = request.getfixturevalue(f"{kind}_run")
    export_checkpoint(run, tmp_path / "r", "m", precision="int8", max_worsening=0.5, progress=told)
    if total is None:
        total = sum(len(sequence) - 1 for sequence in tracing_data().sequences)
    counted = [stage for stage in told.stages if stage[1]]
    assert counted == [
        ("measuring the model on the validation data", total, unit),
        ("measuring int8 on them", total, unit),
    ]
    assert sorted(told.done)[-2:] == [total, total]
    assert (told.stages[0][0], told.stages[-1][0]) == ("building the int8 graphs", "publishing")


def test_command_tells_its_stages_to_standard_error(language_run: Path, tmp_path: Path, capsys) -> None:
    flags = f"{language_run} --repository {tmp_path / 'r'} --name m --precision int8 --max-worsening 0.5"
    assert main(flags.split()) == 0
    said = capsys.readouterr()
    for stage in ("building the int8 graphs", "measuring int8 on them", "building the prefill graphs", "publishing"):
        assert f"export: {stage}" in said.err
        assert stage not in said.out


def test_int8_export_of_a_tracing_run_records_auc(tracing_run: Path, tmp_path: Path) -> None:
    done = export_checkpoint(tracing_run, tmp_path / "r", "m", precision="int8", max_worsening=0.1)
    manifest = open_bundle(done.bundle).manifest
    model, _ = load_tracing_model(read_checkpoint(tracing_run / "best.safetensors"))
    graph = int8_of(model.step_module())
    served = tracing_figures(lambda rows: GraphForward(graph, model.step_module(), rows), tracing_data())
    assert manifest.figures.served == served.model_dump()
    assert manifest.figures.measure == "AUC"
    assert manifest.figures.worsening == manifest.figures.fp32["auc"] - manifest.figures.served["auc"]


ANSWERS = TracingValidation(attempts=9, auc=0.5, accuracy=1.0, log_loss=0.2)
CAPTIONS = CaptioningValidation(images=9, beam_width=1, length_penalty=0.0, bleu_1=80.0, bleu_4=0.0, nats_per_token=0.7)


@pytest.mark.parametrize(
    ("before", "figure"),
    [
        (ANSWERS, "log_loss"),
        (CAPTIONS, "nats_per_token"),
        (CAPTIONS.model_copy(update={"bleu_4": 0.3}), "nats_per_token"),
    ],
)
def test_int8_is_judged_by_perplexity_where_its_own_figure_cannot_fall(before, figure: str) -> None:
    def after(nats: float):
        return before.model_copy(update={figure: getattr(before, figure) + nats})

    measure = MEASURES["tracing" if before is ANSWERS else "captioning"]
    judged = judge(measure, before, after(0.001), None)
    assert (judged.measure, judged.allowed_worsening) == ("relative perplexity", 0.005)
    assert judged.worsening == pytest.approx(math.exp(0.001) - 1)
    with pytest.raises(WorseInt8, match=r"worse by 1\.71828 in relative perplexity; allowed is 0\.005"):
        judge(measure, before, after(1.0), None)
    moves = {"auc": 0.6} if before is ANSWERS else {"bleu_4": 0.31}
    assert judge(measure, before.model_copy(update=moves), after(1.0).model_copy(update=moves), None).measure in (
        "AUC",
        "BLEU-4",
    )


def test_int8_export_that_is_worse_than_allowed_publishes_nothing(
    language_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(step):
        step = copy.deepcopy(step)  # its weights are the model's
        step.projection.bias.data[3] += 2
        return export_step(step)

    monkeypatch.setattr(making_module, "export_step", off)
    arguments = [str(language_run), "--repository", str(tmp_path / "r"), "--name", "m", "--precision", "int8"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "in relative perplexity; allowed is 0.005 (--max-worsening), so nothing was published" in said
    assert not (tmp_path / "r").exists()
    assert main([*arguments, "--max-worsening", "9"]) == 0
    assert "in relative perplexity; allowed is 9" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "r" / "m" / "1" / "manifest.json").read_text())
    assert manifest["figures"]["worsening"] > 0.005


def test_int8_export_without_validation_data_says_how_to_get_them(
    make_checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_checkpoint(tmp_path / "best.safetensors")
    assert main([str(path), "--repository", str(tmp_path / "r"), "--name", "m", "--precision", "int8"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"export: {tmp_path / 'validation.safetensors'}: there is no such file")
    assert f"run `python -m training RECIPE --resume --output {tmp_path}`" in said


def test_int8_export_refuses_the_data_of_another_corpus(language_run: Path, tmp_path: Path) -> None:
    data = language_data()
    write_validation(language_run / "validation.safetensors", ValidationData("language", "1" * 64, data.sequences, 9))
    with pytest.raises(CheckpointError, match=r"a corpus with sha256 1+; best.safetensors was trained on 0+$"):
        export_checkpoint(language_run, tmp_path / "r", "m", precision="int8")


def test_int8_export_refuses_data_on_which_training_did_not_measure(language_run: Path, tmp_path: Path) -> None:
    write_validation(language_run / "validation.safetensors", language_data(length=300))
    with pytest.raises(CheckpointError, match="so the file is not this run's"):
        export_checkpoint(language_run, tmp_path / "r", "m", precision="int8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-worsening", "0"], "argument --max-worsening: is for --precision int8 alone"),
    ],
)
def test_cli_refuses_flags_that_do_not_fit(
    language_run: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main([str(language_run), "--repository", "r", "--name", "m", *flags])
    assert message in capsys.readouterr().err
