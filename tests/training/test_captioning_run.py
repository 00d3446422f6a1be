"""`python -m training` on captioned pictures: what it leaves for export, and that it can be interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from carousel.models.bleu import bleu
from carousel.models.codec.image import Preprocessing
from carousel.models.features import FeaturesHeader, FrozenEncoder
from carousel.models.figures import CaptioningValidation
from carousel.models.manifest import Provenance
from carousel.models.nn.beam import best_captions
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.validation import VALIDATION, CaptioningValidationData, read_validation
from carousel.training.__main__ import main
from carousel.training.errors import RunError
from carousel.training.recipe import load_recipe
from carousel.training.run import TrainingRun
from carousel.training.trainer import BEST, LAST, Progress
from tests.trained import frozen_encoder, load_captioning_model

ENCODER = FrozenEncoder(
    sha256="ab" * 32,
    preprocessing=Preprocessing(width=96, height=64),
    input="input",
    feature="features",
    grid=(2, 3),
    size=4,
)

MODEL = """
[model]
embedding_size = 6
hidden_size = 9
value_size = 7
key_size = 5
image_dropout = 0.2
input_dropout = 0.3
output_dropout = 0.4

[loss]
doubly_stochastic = 0.5
scheduled_sampling = 0.5

[batches]
images = 4
captions = 2

[optimizer]
weight_decay = 0.1

[averaging]
kind = "ema"
decay = 0.9

[decoding]
length_penalty = 0.7
"""

SCENES = """
[run]
task = "captioning"
seed = 5
threads = 1
precision = "bf16"
save_every_windows = 2

[corpus]
kind = "generated"
scenes = 10
validation_scenes = 3

[encoder]
width = 24
height = 16
channels = [8, 12]

[vocabulary]
min_frequency = 1
max_tokens = 12

[schedule]
epochs = 2
"""

FEATURES = """
[run]
task = "captioning"
seed = 5
threads = 1
save_every_windows = 2

[corpus]
train = "{directory}/train.tsv"
validation = "{directory}/valid.tsv"

[features]
train = ["{directory}/train.safetensors", "{directory}/flipped.safetensors"]
validation = "{directory}/valid.safetensors"

[vocabulary]
min_frequency = 2
max_tokens = 8

[schedule]
epochs = 2
"""


@pytest.fixture
def scenes_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.toml"
    path.write_text(SCENES + MODEL)
    return path


def write_part(
    directory: Path, name: str, pictures: int, flipped: bool = False, encoder: FrozenEncoder = ENCODER
) -> None:
    """Captions that the features tell: the first is large where there is a dog, the second where it runs."""
    generator = torch.Generator().manual_seed(pictures + flipped)
    features = torch.randn(pictures, 6, 4, generator=generator) / 4
    lines = []
    for picture in range(pictures):
        animal, verb = picture % 2, picture // 2 % 2
        features[picture, :, :2] += torch.tensor([4.0 * animal, 4.0 * verb])
        words = f"a {('cat', 'dog')[animal]} {('sleeps', 'runs')[verb]}"
        lines += [f"{picture}.jpg\t{number}\t{text}" for number, text in enumerate((words, f"there is {words}"))]
    header = FeaturesHeader(encoder=encoder, flipped=flipped, images=tuple(f"{n}.jpg" for n in range(pictures)))
    save_file({"features": features}, directory / f"{name}.safetensors", {"carousel": header.model_dump_json()})
    if not flipped:
        (directory / f"{name}.tsv").write_text("\n".join(lines))


@pytest.fixture
def features_recipe(tmp_path: Path) -> Path:
    for name, pictures, flipped in (("train", 16, False), ("flipped", 16, True), ("valid", 8, False)):
        write_part(tmp_path, name, pictures, flipped)
    path = tmp_path / "features.toml"
    path.write_text(FEATURES.format(directory=tmp_path) + MODEL)
    return path


class Interrupted(Exception):
    pass


class Observer:
    """Ends a run after so many steps, if at all."""

    def __init__(self, step: int = 0) -> None:
        self._step = step

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        if progress.step == self._step:
            raise Interrupted

    def on_validation(self, *_: object) -> None: ...


def run(recipe: Path, directory: Path, *overrides: str, step: int = 0, resume: bool = False) -> TrainingRun:
    training = TrainingRun(load_recipe(recipe, list(overrides)), directory, resume=resume)
    training.trainer.run(Observer(step))
    return training


@pytest.mark.parametrize("recipe", ["scenes_recipe", "features_recipe"])
@pytest.mark.parametrize("overrides", [[], ["model.attention=none", "model.cell=gru"]])
def test_resumed_captioning_run_ends_bit_for_bit_as_an_uninterrupted_one(
    request: pytest.FixtureRequest, tmp_path: Path, recipe: str, overrides: list[str]
) -> None:
    path = request.getfixturevalue(recipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(path, whole, *overrides)
    for step, resume in ((3, False), (5, True)):  # within the first epoch, the last window not saved; and later
        with pytest.raises(Interrupted):
            run(path, cut, *overrides, step=step, resume=resume)
    run(path, cut, *overrides, resume=True)
    for name in (LAST, BEST):
        seen, expected = read_checkpoint(cut / name), read_checkpoint(whole / name)
        assert seen.header == expected.header
        assert seen.tensors.keys() == expected.tensors.keys()
        assert [key for key in seen.tensors if not torch.equal(seen.tensors[key], expected.tensors[key])] == []


def test_command_captions_and_leaves_what_export_needs(
    features_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(features_recipe), "--output", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run").glob("*.safetensors")} == {BEST, LAST, VALIDATION}
    shown = capsys.readouterr()
    assert "16 pictures with 160 tokens of captions, 4 windows per epoch; validation: 8 pictures" in shown.out
    assert "epoch 2: train " in shown.out
    assert " nats/token" in shown.out
    best = read_checkpoint(tmp_path / "run" / BEST)
    model, codec = load_captioning_model(best)
    assert frozen_encoder(best) == ENCODER
    assert codec.preprocessing == ENCODER.preprocessing
    assert codec.text.vocabulary_size == model.config.vocabulary_size == 3 + 7
    seen = CaptioningValidation(**best.header["validation"])
    assert (seen.images, seen.beam_width, seen.length_penalty) == (8, 3, 0.7)
    assert best.header["decoding"] == {"temperature": 0.0, "beam_width": 3, "length_penalty": 0.7}
    assert best.header["limits"] == {"max_new_tokens": 8}
    assert Provenance(**best.header["provenance"]).recipe == "features"

    held_out = read_validation(tmp_path / "run" / VALIDATION)
    assert isinstance(held_out, CaptioningValidationData)
    assert held_out.corpus_sha256 == best.header["provenance"]["corpus_sha256"]
    said = best_captions(model, held_out.images, codec.begin_id, codec.end_id, 8, width=3, length_penalty=0.7)
    assert bleu([codec.caption(one.ids) for one in said], held_out.references)[3] == pytest.approx(seen.bleu_4)
    with torch.inference_mode():
        logits, _ = model(held_out.images, held_out.ids, held_out.targets >= 0)
    nats = torch.nn.functional.cross_entropy(logits, held_out.targets[held_out.targets >= 0])
    assert nats.item() == pytest.approx(seen.nats_per_token, rel=1e-5)


@pytest.mark.parametrize("attention", ["none", "soft"])
def test_captions_say_what_the_features_show(features_recipe: Path, tmp_path: Path, attention: str) -> None:
    overrides = [
        f"model.attention={attention}", "schedule.epochs=30", "optimizer.learning_rate=2e-2",
        "loss.scheduled_sampling=0.0", "decoding.criterion=nats_per_token", "model.image_dropout=0.0",
        "model.input_dropout=0.0", "model.output_dropout=0.0", "model.hidden_size=16", "averaging.kind=none",
    ]  # fmt: skip
    task = run(features_recipe, tmp_path / "run", *overrides).task
    model, _ = load_captioning_model(read_checkpoint(tmp_path / "run" / BEST))
    assert model.config.attention == attention
    assert task.evaluate().figures["bleu_1"] > 95.0  # two of three words would be right by chance


def test_checkpoint_of_an_encoder_of_its_own_names_its_preprocessing(scenes_recipe: Path, tmp_path: Path) -> None:
    run(scenes_recipe, tmp_path / "run")
    best = read_checkpoint(tmp_path / "run" / BEST)
    model, codec = load_captioning_model(best)
    assert frozen_encoder(best) is None
    assert codec.preprocessing.shape == (3, 16, 24)
    assert (model.config.rows, model.config.columns, model.config.channels) == (4, 6, (8, 12))
    CaptioningValidation(**best.header["validation"])


def test_resumption_with_other_captions_or_features_is_refused(features_recipe: Path, tmp_path: Path) -> None:
    run(features_recipe, tmp_path / "run", "schedule.epochs=1")
    other = ENCODER.model_copy(update={"sha256": "cd" * 32})
    for name, pictures, flipped in (("train", 16, False), ("flipped", 16, True), ("valid", 8, False)):
        write_part(tmp_path, name, pictures, flipped, other)
    with pytest.raises(RunError, match=r"features\.train is of another encoder than the run was started with"):
        run(features_recipe, tmp_path / "run", "schedule.epochs=1", resume=True)
    (tmp_path / "valid.tsv").write_text("0.jpg\t0\ta cat\n")
    with pytest.raises(RunError, match="the corpus's validation_sha256 is "):
        run(features_recipe, tmp_path / "run", "schedule.epochs=1", resume=True)


def test_pictures_of_both_halves_in_one_file_of_features_are_refused(
    features_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"features.validation={tmp_path}/train.safetensors", "schedule.epochs=1"]
    assert main([str(features_recipe), *overrides, "--output", str(tmp_path / "run")]) == 2
    assert (
        "picture '0.jpg' is both in corpus.train and in corpus.validation, with features of" in capsys.readouterr().err
    )


def test_two_encoders_or_pooled_features_for_attention_are_refused(
    features_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path, "valid", 8, encoder=ENCODER.model_copy(update={"sha256": "cd" * 32}))
    assert main([str(features_recipe), "--output", str(tmp_path / "run")]) == 2
    sentence = "error: features.train and features.validation are of two encoders; compute both with the same"
    assert sentence in capsys.readouterr().err
    pooled = ENCODER.model_copy(update={"grid": None})
    for name, pictures, flipped in (("train", 16, False), ("flipped", 16, True), ("valid", 8, False)):
        write_part(tmp_path, name, pictures, flipped, pooled)
    assert main([str(features_recipe), "--output", str(tmp_path / "run")]) == 2
    assert "holds pooled features; model.attention 'soft' needs a map, 'none' does not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["corpus.train=none.tsv"], "error: corpus.train: there is no file none.tsv"),
        (["corpus.train="], "error: corpus: kind tsv takes two files of captions; set corpus.train and corpus.validat"),
        (["corpus.kind=generated"], "error: corpus: kind generated reads no files; leave out train and validation"),
        (["features.train="], "error: features: train and validation go together; set both or neither"),
        (["features.train=none"], "error: features.train: there is no file none; python -m export.features writes it"),
        (["features.train=", "features.validation="], "error: the recipe says neither where pictures nor where featur"),
        (["batches.lanes=3"], "error: batches.lanes is not a key of a recipe; allowed in [batches] are images, capti"),
        (["decoding.beam_width=0"], "error: decoding.beam_width is 0; it should be greater than or equal to 1"),
        (["vocabulary.max_tokens=1"], "error: vocabulary.max_tokens is 1; it should be greater than or equal to 2"),
        (["model.tied=true", "model.attention=none"], "error: model: tied without attention takes embedding_size = hi"),
    ],
)
def test_command_answers_a_mistake_about_captions_with_one_sentence(
    features_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main([str(features_recipe), *arguments, "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(sentence)
