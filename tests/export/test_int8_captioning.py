"""Captioning in int8: the step graph against the model, the rows against themselves, the export against its bound."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from carousel.export import captioning
from carousel.export.__main__ import main
from carousel.export.checks.parity import random_floats, require_row_independence
from carousel.export.forward import GraphCaptioner
from carousel.export.measures.captioning import captioning_figures, measured_on_captions
from carousel.export.onnx_graph import export_step
from carousel.export.passes import tables
from carousel.export.passes.bounds import Interval
from carousel.export.passes.convolutions import round_convolutions
from carousel.export.passes.recipe import int8_step
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle
from carousel.models.errors import CheckpointError
from carousel.models.graph import read_graph
from carousel.models.manifest import DecodingDefaults
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from carousel.models.nn.validation import (
    CaptioningValidationData,
    ValidationData,
    read_validation,
    write_validation,
)
from tests.manifests import output_size_of
from tests.trained import load_captioning_model

BEAM = DecodingDefaults(beam_width=3, length_penalty=0.7)
STATES = {"state.h0": Interval(-1.0, 1.0), "state.c0": Interval(-1.0, 1.0)}
KINDS = [("lstm", "soft"), ("gru", "soft"), ("lstm", "none"), ("gru", "none")]
WORDS = ("a", "dog", "child", "red", "ball", "runs")


def random_model(cell: str, attention: str, std: float = 0.4, **sizes: int) -> CaptioningModel:
    config = {"embedding_size": 5, "hidden_size": 11, "value_size": 6, "key_size": 9} | sizes
    model = CaptioningModel(
        CaptioningModelConfig(
            vocabulary_size=13, rows=2, columns=3, feature_size=4, cell=cell, attention=attention, **config
        )
    ).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=std, generator=generator)
    return model


def data_of(images: torch.Tensor, corpus_sha256: str = "0" * 64) -> CaptioningValidationData:
    """Two captions of each image, of words that the tiny codec has (its ids from 3 on), one shorter than the other."""
    random = np.random.default_rng(4)
    ids, targets = np.ones((len(images), 2, 6), np.int64), np.full((len(images), 2, 6), -100)
    references = []
    for image in range(len(images)):
        said = random.integers(3, 9, (2, 5))
        for row, length in enumerate((5, 4)):
            ids[image, row, 1 : length + 1] = said[row, :length]
            targets[image, row, : length + 1] = [*said[row, :length], 2]
        references.append([" ".join(WORDS[id_ - 3] for id_ in said[row, :length]) for row, length in ((0, 5), (1, 4))])
    return CaptioningValidationData(corpus_sha256, images, torch.from_numpy(ids), torch.from_numpy(targets), references)


@pytest.fixture
def run(make_captioning_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A run directory as training leaves it."""
    (tmp_path / "run").mkdir()
    path = make_captioning_checkpoint(tmp_path / "run" / "best.safetensors")
    read = read_checkpoint(path)
    model, codec = load_captioning_model(read)
    images = torch.rand(7, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    data = data_of(images, read.header["provenance"]["corpus_sha256"])
    figures = captioning_figures(model, codec, data, BEAM, 8).model_dump()
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, "validation": figures}))
    write_validation(path.parent / "validation.safetensors", data)
    return path.parent


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("cell", "attention"), KINDS)
def test_int8_step_is_near_the_model_and_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch, cell: str, attention: str, table: bool
) -> None:
    if not table:
        monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 0)
    model = random_model(cell, attention)
    features = torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(5))
    data = data_of(features)
    step = model.step_module()
    content, left = int8_step(export_step(step), STATES, measured_on_captions(model, data))
    assert not left
    graph, fp32 = read_graph(content, "step.onnx"), read_graph(export_step(step), "step.onnx")
    assert output_size_of("captioning", graph) == 13
    assert {spec.name: spec.shape for spec in graph.inputs} == {spec.name: spec.shape for spec in fp32.inputs}
    assert {spec.name: spec.shape for spec in graph.outputs} == {spec.name: spec.shape for spec in fp32.outputs}
    operators = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert operators.count("MatMulIntegerToFloat") == (4 if attention == "soft" else 2) + (not table)
    assert not [operator for operator in operators if "Dynamic" in operator]

    rounded = GraphCaptioner(model, content)
    with torch.inference_mode():
        state, context = model.encode(features)
        other = {name: part.clone() for name, part in state.items()}
        for at in range(6):
            logits, state, _ = model.step(data.ids[:, 0, at], state, context)
            seen, other, _ = rounded.step(data.ids[:, 0, at], other, context)
            assert 0 < (seen - logits).abs().max() < 0.15 * logits.std()
        for name in state:
            assert (other[name] - state[name]).abs().max() < 0.05


@pytest.mark.parametrize(("cell", "attention"), KINDS)
def test_int8_rows_keep_to_themselves(cell: str, attention: str) -> None:
    model = random_model(cell, attention, embedding_size=19, hidden_size=37, value_size=23, key_size=29)
    graph, _ = int8_step(export_step(model.step_module()), STATES, lambda _, values: dict.fromkeys(values, 1.7))
    tokens = np.random.default_rng(1).integers(0, 13, 64)
    require_row_independence(graph, {"token": tokens}, random_floats(graph, 64, 6), sizes=(1, 2, 3, 7, 16, 64))


def test_what_is_measured_is_that_of_the_steps_that_there_are() -> None:
    model = random_model("lstm", "soft", std=0.8)
    features = torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(5))
    data, largest = data_of(features), 0.0
    with torch.inference_mode():
        for image in range(7):
            for row, steps in ((0, 6), (1, 5)):
                state, context = model.encode(features[image : image + 1])
                for token in data.ids[image, row, :steps]:
                    question = torch.cat([state["h0"], model.embedding(token[None])], 1)
                    largest = max(largest, model.attention(question, context)[0].abs().max().item())
                    _, state, _ = model.step(token[None], state, context)
    asked = []
    measure = measured_on_captions(model, data)
    int8_step(export_step(model.step_module()), STATES, lambda *given: asked.append(given) or measure(*given))
    ((step, (value,)),) = asked  # what attention hands on has no bound; everything else has one
    assert measure(step, [value])[value] == pytest.approx(largest, rel=0.01)  # its table of words is rounded already


def test_captioning_validation_data_read_back_are_what_was_written(tmp_path: Path) -> None:
    data = data_of(torch.rand(7, 6, 4))
    write_validation(tmp_path / "v.safetensors", data)
    read = read_validation(tmp_path / "v.safetensors")
    assert isinstance(read, CaptioningValidationData)
    assert read.references == data.references
    for name in ("images", "ids", "targets"):
        assert torch.equal(getattr(read, name), getattr(data, name))


def test_int8_export_records_the_figures_before_and_after(run: Path, tmp_path: Path, capsys) -> None:
    flags = f"{run} --repository {tmp_path / 'r'} --name m --precision int8 --max-worsening 100"
    assert main(flags.split()) == 0
    said = capsys.readouterr()
    assert " in relative perplexity; allowed is 100\n" in said.out
    assert "7/7" in said.err  # images measured
    bundle = open_bundle(tmp_path / "r" / "m" / "1")
    manifest, read = bundle.manifest, read_checkpoint(run / "best.safetensors")
    model, codec = load_captioning_model(read)
    served = GraphCaptioner(model, bundle.files["step.onnx"], bundle.files["encoder.onnx"])
    data = read_validation(run / "validation.safetensors")
    assert isinstance(data, CaptioningValidationData)
    assert (manifest.precision, manifest.figures.measure) == ("int8", "relative perplexity")
    assert manifest.figures.fp32 == pytest.approx(read.header["validation"], rel=1e-6)
    assert manifest.figures.served == captioning_figures(served, codec, data, BEAM, 8).model_dump()
    assert manifest.figures.served["nats_per_token"] != manifest.figures.fp32["nats_per_token"]
    assert manifest.figures.fp32["bleu_4"] == 0.0  # of a network that has learnt nothing: BLEU-4 would judge nothing
    lost = manifest.figures.served["nats_per_token"] - manifest.figures.fp32["nats_per_token"]
    assert manifest.figures.worsening == pytest.approx(math.exp(lost) - 1)
    assert sorted(bundle.files) == ["encoder.onnx", "step.onnx", "tokenizer.json"]


@pytest.mark.parametrize("culprit", ["step", "encoder"])
def test_int8_export_that_loses_bleu_publishes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, culprit: str
) -> None:
    path = run / "best.safetensors"
    read = read_checkpoint(path)
    model, codec = load_captioning_model(read)
    data = read_validation(run / "validation.safetensors")
    assert isinstance(data, CaptioningValidationData)
    # What the model says is what people said, so that there is something to lose.
    monkeypatch.setattr("carousel.export.measures.captioning.bleu", lambda captions, _: _share_of(captions, spoken))
    spoken: list[str] = []
    figures = captioning_figures(model, codec, data, BEAM, 8)
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, "validation": figures.model_dump()}))

    def off_step(step):
        step = copy.deepcopy(step)  # its weights are the model's
        step.projection.bias.data[4] += 9
        return export_step(step)

    def off_encoder(encoder, images):
        return round_convolutions(encoder, images * 1e-3)  # in whose ranges no image of the light fits

    spoken.clear()
    if culprit == "step":
        monkeypatch.setattr(captioning, "export_step", off_step)
    else:
        monkeypatch.setattr(captioning, "round_convolutions", off_encoder)
    arguments = [str(run), "--repository", str(tmp_path / "r"), "--name", "m", "--precision", "int8"]
    assert main(arguments) == 1
    assert "in BLEU-4; allowed is 0.3 (--max-worsening), so nothing was published" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert main([*arguments, "--max-worsening", "100"]) == 0
    manifest = json.loads((tmp_path / "r" / "m" / "1" / "manifest.json").read_text())
    assert manifest["figures"]["worsening"] > 0.3


def _share_of(captions: list[str], spoken: list[str]) -> tuple[float, float, float, float]:
    """BLEU against what was said first, which is the model's own."""
    from carousel.models.bleu import bleu

    if not spoken:
        spoken += [caption or "nothing" for caption in captions]
    return bleu(captions, [[caption] for caption in spoken])


def test_int8_export_of_captions_refuses_what_is_not_the_runs(run: Path, tmp_path: Path) -> None:
    path, repository = run / "validation.safetensors", tmp_path / "r"
    data = read_validation(path)
    assert isinstance(data, CaptioningValidationData)
    fewer = CaptioningValidationData(
        data.corpus_sha256, data.images[:6], data.ids[:6], data.targets[:6], data.references[:6]
    )
    write_validation(path, fewer)
    with pytest.raises(CheckpointError, match=r"over 6 images on it; training recorded .* so the file is not this run"):
        export_checkpoint(run, repository, "m", precision="int8")
    write_validation(path, ValidationData("language", data.corpus_sha256, [torch.arange(9)], 9))
    with pytest.raises(CheckpointError, match=r"holds the validation data of another task than best\.safetensors is"):
        export_checkpoint(run, repository, "m", precision="int8")
    path.unlink()
    with pytest.raises(CheckpointError, match="there is no such file, and int8 is judged by it"):
        export_checkpoint(run, repository, "m", precision="int8")
