"""`python -m training.evaluate`: figures, captions and a sheet of pictures, on models of a second's training."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from carousel.models.codec.image import Preprocessing
from carousel.models.features import FEATURES, METADATA_KEY, FeaturesHeader, FrozenEncoder
from carousel.models.nn.beam import beam_search
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.training.__main__ import main as train
from carousel.training.corpus.album import Album
from carousel.training.corpus.captions import CaptionedImage
from carousel.training.corpus.scene_drawing import draw_scene
from carousel.training.corpus.scene_words import scene_captions
from carousel.training.corpus.scenes import make_scenes
from carousel.training.evaluate.__main__ import main
from carousel.training.evaluate.metrics import judge
from carousel.training.evaluate.sheet import picture_sheet
from tests.trained import load_captioning_model

SCENES = """
[run]
task = "captioning"
threads = 1
[corpus]
kind = "generated"
scenes = 12
validation_scenes = 7
[vocabulary]
min_frequency = 1
max_tokens = 9
[encoder]
width = 16
height = 24
channels = [4, 6]
[model]
embedding_size = 5
hidden_size = 8
value_size = 6
key_size = 7
[batches]
images = 4
[schedule]
epochs = 1
[decoding]
beam_width = 2
length_penalty = 0.5
"""

FEATURE_FILES = """
[run]
task = "captioning"
threads = 1
[corpus]
kind = "tsv"
train = "train.tsv"
validation = "validation.tsv"
[features]
train = "train.safetensors"
validation = "validation.safetensors"
[vocabulary]
min_frequency = 1
[model]
embedding_size = 5
hidden_size = 8
value_size = 6
key_size = 7
[schedule]
epochs = 1
"""


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a model of scenes."""
    directory = tmp_path_factory.mktemp("scenes")
    (directory / "tiny.toml").write_text(SCENES)
    assert train([str(directory / "tiny.toml"), "--output", str(directory / "run")]) == 0
    return directory / "run"


def table(printed: str) -> dict[str, list[float]]:
    """The printed figures by label."""
    lines = [line for line in printed.splitlines() if line[22:].strip() and line[:1] != " " and ":" not in line]
    return {line[:22].strip(): [float(cell) for cell in line[22:].split()] for line in lines}


def test_evaluate_prints_the_figures_of_greedy_and_beam(
    scenes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.json"
    assert main([str(scenes_run), "--captions", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "tiny: 7 pictures, length penalty 0.5"
    assert printed.splitlines()[1].split() == ["greedy", "beam", "2"]

    scenes = make_scenes(1, 7, first=12)
    said = json.loads(file.read_text())
    assert list(said) == [f"scene-{scene.index}" for scene in scenes]
    score = judge(list(said.values()), [scene_captions(scene) for scene in scenes])
    figures = table(printed)
    assert figures["BLEU-1"][1] == pytest.approx(score.bleu_1, abs=0.01)
    assert figures["CIDEr-D"][1] == pytest.approx(score.cider_d, abs=0.01)
    assert figures["true captions"] == [0, 0]  # nine tokens are too few
    trained = read_checkpoint(scenes_run / "best.safetensors").header["validation"]
    assert figures["BLEU-1"][1] == pytest.approx(trained["bleu_1"], abs=0.01)


def test_evaluate_decodes_as_it_is_told(scenes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "captions.json"
    arguments = ["corpus.validation_scenes=3", "corpus.seed=5", "--beam-width", "3", "--length-penalty", "0"]
    assert main([str(scenes_run / "best.safetensors"), *arguments, "--captions", str(file)]) == 0
    assert "tiny: 3 pictures, length penalty 0\n" in capsys.readouterr().out
    model, codec = load_captioning_model(read_checkpoint(scenes_run / "best.safetensors"))
    for scene, caption in zip(make_scenes(5, 3, first=12), json.loads(file.read_text()).values(), strict=True):
        pixels = torch.from_numpy(codec.preprocessing.apply(draw_scene(scene)))[None]
        ((best, *_),) = beam_search(model, pixels, codec.begin_id, codec.end_id, 9, width=3)
        assert caption == codec.caption(best.ids)

    assert main([str(scenes_run), "--beam-width", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["greedy"]


class _Page(HTMLParser):
    """What a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def read_page(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page


def test_evaluate_writes_a_sheet_of_pictures(scenes_run: Path, tmp_path: Path) -> None:
    sheet, file = tmp_path / "sheet.html", tmp_path / "captions.json"
    assert main([str(scenes_run), "--sheet", str(sheet), "--pictures", "3", "--captions", str(file)]) == 0
    page = read_page(sheet.read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    shown = [scene for scene in make_scenes(1, 7, first=12) if scene.index in (12, 14, 16)]
    assert [image["alt"] for image in images] == [f"scene-{scene.index}" for scene in shown]
    said = json.loads(file.read_text())
    for scene, image in zip(shown, images, strict=True):
        kind, _, data = (image["src"] or "").partition(";base64,")
        assert kind == "data:image/png"
        np.testing.assert_array_equal(Image.open(io.BytesIO(b64decode(data))), draw_scene(scene))
        for caption in (*scene_captions(scene), said[f"scene-{scene.index}"]):
            assert f"\n{caption}\n" in page.text
    assert "7 pictures: BLEU-1 " in page.text
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}  # nothing is fetched


def test_sheet_escapes_what_it_shows_and_marks_what_is_false() -> None:
    evil = "<script>alert('a & \"b\"')</script>"
    album = Album(
        [CaptionedImage(f'{evil}"', (evil, "a dog")), CaptionedImage("large", ("a cat",))],
        lambda name: Image.new("RGB", (90, 60) if name != "large" else (3000, 1500)),
        "ab" * 32,
        lambda _name, caption: caption == "true",
    )
    page = read_page(picture_sheet(evil, evil, album, [evil, "true"], count=9))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) == 5  # title twice, remark, caption, reference
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images[0]["alt"] == f'{evil}"'
    sizes = [Image.open(io.BytesIO(b64decode((image["src"] or "").partition("base64,")[2]))).size for image in images]
    assert sizes == [(90, 60), (320, 160)]
    marks = [attributes["class"] for tag, attributes in page.tags if tag == "p" and "class" in attributes]
    assert marks == ["said false", "said"]


def _write_features(path: str, names: tuple[str, ...], mean: float = 0.0) -> None:
    encoder = FrozenEncoder(
        sha256="cd" * 32,
        preprocessing=Preprocessing(width=8, height=8, mean=(mean, mean, mean)),
        input="input",
        feature="features",
        grid=(2, 3),
        size=4,
    )
    header = FeaturesHeader(encoder=encoder, flipped=False, images=names)
    values = np.random.default_rng(len(names)).standard_normal((len(names), 6, 4), np.float32)
    save_file({FEATURES: values}, path, {METADATA_KEY: header.model_dump_json()})


def test_evaluate_reads_features_of_the_same_encoder_and_pictures_for_the_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(FEATURE_FILES)
    Path("train.tsv").write_text("".join(f"{n}.png\t0\tA {word} .\n" for n, word in enumerate(("dog", "cat", "hat"))))
    Path("validation.tsv").write_text("v.png\t0\tA dog .\nw.png\t0\tA hat .\n")
    _write_features("train.safetensors", ("0.png", "1.png", "2.png"))
    _write_features("validation.safetensors", ("w.png", "v.png"))
    _write_features("other.safetensors", ("w.png", "v.png"), mean=1.0)
    with zipfile.ZipFile("pictures.zip", "w") as file:
        for name in ("v.png", "w.png"):
            content = io.BytesIO()
            Image.new("RGB", (200, 100), "red").save(content, "PNG")
            file.writestr(name, content.getvalue())
    assert train(["tiny.toml", "--output", "run"]) == 0
    capsys.readouterr()

    assert main(["run", "--sheet", "sheet.html"]) == 2
    assert "error: a sheet shows pictures; say where they are" in capsys.readouterr().err
    assert main(["run", "corpus.validation_pictures=pictures.zip", "--sheet", "sheet.html"]) == 0
    assert "tiny: 2 pictures" in capsys.readouterr().out
    assert Path("sheet.html").read_text().count("data:image/jpeg;base64,") == 2

    assert main(["run", "features.validation=other.safetensors"]) == 2
    assert "error: features.validation: other.safetensors is of another encoder, or of another preprocessing" in (
        capsys.readouterr().err
    )
    Path("validation.tsv").write_text("x.png\t0\tA dog .\n")
    assert main(["run"]) == 2
    assert "has no picture 'x.png', which the captions name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["corpus.scene=2"], "error: corpus.scene is not a key of a recipe"),
        (["corpus.kind=tsv"], "error: corpus: kind tsv takes two files of captions"),
        (["corpus.kind=tsv", "corpus.train=t", "corpus.validation=v.tsv"], "error: the model reads pictures itself"),
        (["--captions", "none/captions.json"], "error: none/captions.json: there is no directory"),
        (["--sheet", "."], "error: .: is a directory; give the path of a file"),
    ],
)
def test_evaluate_answers_a_mistake_with_one_sentence(
    scenes_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.tsv").write_text("a.png\t0\tA dog .\n")
    assert main([str(scenes_run), *arguments]) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize("flag", [["--beam-width", "0"], ["--length-penalty", "-1"], ["--length-penalty", "nan"]])
def test_evaluate_refuses_flags_out_of_range(scenes_run: Path, flag: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(scenes_run), *flag])


def test_evaluate_refuses_checkpoints_of_other_tasks(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([str(recipe_path), "schedule.epochs=1", "--output", str(tmp_path / "run")]) == 0
    assert main([str(tmp_path / "run")]) == 2
    assert "error: checkpoint is of task 'language'; allowed is one that captions images" in capsys.readouterr().err
