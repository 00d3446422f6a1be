"""What a captioning model sees while it learns: features of files, pictures of folders, scenes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from carousel.models.codec.image import Preprocessing
from carousel.models.features import FeaturesHeader, FrozenEncoder
from carousel.training.corpus.album import CaptionFiles, read_albums
from carousel.training.corpus.scene_words import describes
from carousel.training.corpus.scenes import make_scenes
from carousel.training.errors import CorpusError
from carousel.training.tasks.captioning.features import FeatureImages
from carousel.training.tasks.captioning.pixels import PixelImages

ENCODER = FrozenEncoder(
    sha256="ab" * 32,
    preprocessing=Preprocessing(width=96, height=64),
    input="input",
    feature="features",
    grid=(2, 3),
    size=4,
)
NAMES = ("one.jpg", "two.jpg", "three.jpg")


@pytest.fixture
def write_features(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, features: torch.Tensor, encoder: FrozenEncoder = ENCODER) -> str:
        header = FeaturesHeader(encoder=encoder, flipped=False, images=NAMES)
        save_file({"features": features}, tmp_path / name, {"carousel": header.model_dump_json()})
        return str(tmp_path / name)

    return write


def test_features_are_read_by_name_and_version(write_features) -> None:
    plain, mirrored = torch.randn(3, 6, 4), torch.randn(3, 6, 4)
    paths = [write_features("a.safetensors", plain), write_features("b.safetensors", mirrored)]
    images = FeatureImages(paths, ["three.jpg", "one.jpg"], "features.train", pooled=False)
    assert (images.versions, images.encoder) == (2, ENCODER)
    assert torch.equal(images.read([0, 1, 0], [0, 0, 1]), torch.stack([plain[2], plain[0], mirrored[2]]))
    pooled = FeatureImages(paths, ["three.jpg", "one.jpg"], "features.train", pooled=True)
    expected = torch.stack([plain[2].mean(0), plain[0].mean(0), mirrored[2].mean(0)])
    torch.testing.assert_close(pooled.read([0, 1, 0], [0, 0, 1]), expected)


def test_pooled_features_are_read_as_they_are(write_features) -> None:
    features = torch.randn(3, 4)
    path = write_features("a.safetensors", features, ENCODER.model_copy(update={"grid": None}))
    assert torch.equal(
        FeatureImages([path], NAMES, "features.train", pooled=True).read([1, 0], [0, 0]), features[[1, 0]]
    )


def test_features_that_cannot_be_used_are_refused(write_features, tmp_path: Path) -> None:
    path = write_features("a.safetensors", torch.randn(3, 6, 4))
    with pytest.raises(CorpusError, match=r"features\.train: .*a\.safetensors has no picture 'four\.jpg', which the"):
        FeatureImages([path], ["one.jpg", "four.jpg"], "features.train", pooled=False)
    other = write_features("b.safetensors", torch.randn(3, 6, 4), ENCODER.model_copy(update={"sha256": "cd" * 32}))
    with pytest.raises(CorpusError, match=r"b\.safetensors is of another encoder than .*a\.safetensors; compute both"):
        FeatureImages([path, other], NAMES, "features.train", pooled=False)
    with pytest.raises(
        CorpusError, match=r"features\.train: there is no file none; python -m export\.features writes it"
    ):
        FeatureImages(["none"], NAMES, "features.train", pooled=False)
    (tmp_path / "text").write_text("features")
    save_file({"features": torch.ones(3)}, tmp_path / "bare.safetensors")
    save_file({"other": torch.ones(3)}, tmp_path / "other.safetensors", {"carousel": FeaturesHeader(
        encoder=ENCODER, flipped=False, images=NAMES).model_dump_json()})  # fmt: skip
    for name in ("text", "bare.safetensors", "other.safetensors"):
        with pytest.raises(CorpusError, match="is no file of features; python -m export"):
            FeatureImages([str(tmp_path / name)], NAMES, "features.train", pooled=False)


def test_pixels_are_what_the_preprocessing_makes_of_a_picture() -> None:
    colours = {"one.jpg": (255, 0, 51), "two.jpg": (0, 102, 255)}

    def open_picture(name: str, side: int | None = None) -> Image.Image:
        assert side == 6  # as serving shrinks what it decodes
        return Image.new("RGB", (9, 5), colours[name])

    images = PixelImages(list(colours), open_picture, Preprocessing(width=6, height=4, deviation=(51, 51, 51)))
    seen = images.read([1, 0, 1], [0, 0, 0])
    assert seen.shape == (3, 3, 4, 6)
    assert seen[:, :, 2, 3].tolist() == [[0, 2, 5], [5, 0, 1], [0, 2, 5]]


@pytest.fixture
def write_pictures(tmp_path: Path) -> Callable[[str, list[str]], None]:
    def write(part: str, names: list[str]) -> None:
        (tmp_path / part).mkdir()
        for shade, name in enumerate(names):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / part / name)
        lines = [f"{name}\t{number}\tA {name[:-4]} dog ." for name in names for number in range(2)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines))

    return write


def files_of(tmp_path: Path, **changes: str) -> CaptionFiles:
    values = {"train": f"{tmp_path}/train.tsv", "validation": f"{tmp_path}/valid.tsv"}
    return CaptionFiles(**{**values, "train_pictures": f"{tmp_path}/train", "validation_pictures": f"{tmp_path}/valid"}
                        | changes)  # fmt: skip


def test_albums_are_read_with_their_pictures(write_pictures, tmp_path: Path) -> None:
    write_pictures("train", ["red.png", "old.png"])
    write_pictures("valid", ["new.png"])
    train, validation = read_albums(files_of(tmp_path))
    assert (train.names, validation.names) == (["red.png", "old.png"], ["new.png"])
    assert train.captions == ["a red dog", "a red dog", "a old dog", "a old dog"]
    assert train.open_picture is not None
    assert train.open_picture("old.png").getpixel((3, 3)) == (1, 0, 0)
    assert train.is_true is None
    (tmp_path / "names").write_text("old.png\n")
    (listed, _) = read_albums(files_of(tmp_path, train_list=f"{tmp_path}/names", train_pictures=""))
    assert (listed.names, listed.open_picture) == (["old.png"], None)
    assert len({train.sha256, validation.sha256, listed.sha256}) == 3


def test_picture_on_both_sides_is_refused(write_pictures, tmp_path: Path) -> None:
    write_pictures("train", ["red.png", "old.png"])
    files = files_of(tmp_path, validation=f"{tmp_path}/train.tsv", validation_pictures=f"{tmp_path}/train")
    with pytest.raises(CorpusError, match=r"picture 'old\.png' is both in corpus\.train and in corpus\.validation"):
        read_albums(files)


def test_picture_that_is_broken_is_named(write_pictures, tmp_path: Path) -> None:
    write_pictures("train", ["red.png"])
    write_pictures("valid", ["new.png"])
    (tmp_path / "valid" / "new.png").write_bytes(b"new")
    _, validation = read_albums(files_of(tmp_path))
    assert validation.open_picture is not None
    with pytest.raises(CorpusError, match=r"picture 'new\.png': content is not an image"):
        validation.open_picture("new.png")


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_all_looked_at_before_a_run(write_pictures, tmp_path: Path, packed: bool) -> None:
    names = ["missing.png", "Red.png", "empty.png", "text.png", "cut.png", "folder.png", "good.png"]
    write_pictures("train", names)
    write_pictures("valid", ["new.png"])
    pictures = tmp_path / "train"
    train, validation = read_albums(files_of(tmp_path))
    train.require_pictures("corpus.train_pictures", 8)
    validation.require_pictures("corpus.validation_pictures", 8)
    (pictures / "missing.png").unlink()
    (pictures / "Red.png").rename(pictures / "red.PNG")
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.png").write_text("no picture")
    (pictures / "cut.png").write_bytes((pictures / "good.png").read_bytes()[:-30])
    (pictures / "folder.png").unlink()
    (pictures / "folder.png").mkdir()
    if packed:
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as file:
            for path in pictures.iterdir():
                file.write(path, path.name)
    where = str(tmp_path / ("train.zip" if packed else "train"))
    train, _ = read_albums(files_of(tmp_path, train_pictures=where))
    with pytest.raises(CorpusError) as caught:
        train.require_pictures("corpus.train_pictures", 8)
    assert str(caught.value) == (
        f"corpus.train_pictures: {where} has no picture 'missing.png', which the captions name; 6 of 7 pictures "
        "cannot be read"
    )
    (listed, _) = read_albums(files_of(tmp_path, train_pictures=where, train_list=_list_of(tmp_path, "cut.png")))
    with pytest.raises(CorpusError, match=r"^corpus\.train_pictures: picture 'cut\.png': image is broken"):
        listed.require_pictures("corpus.train_pictures", 8)


def _list_of(directory: Path, *names: str) -> str:
    (directory / "list").write_text("\n".join(names))
    return str(directory / "list")


def test_albums_of_scenes_are_told_apart_and_known_to_be_true() -> None:
    files = CaptionFiles(kind="generated", scenes=5, validation_scenes=3, seed=2)
    train, validation = read_albums(files)
    scenes = make_scenes(2, 8)
    assert (train.names, validation.names) == ([f"scene-{i}" for i in range(5)], [f"scene-{i}" for i in range(5, 8)])
    assert validation.is_true is not None
    assert all(validation.is_true(picture.name, said) for picture in validation.pictures for said in picture.captions)
    first = validation.pictures[0].captions[0]
    assert [validation.is_true(f"scene-{i}", first) for i in (6, 7)] == [describes(first, scenes[i]) for i in (6, 7)]
    assert train.sha256 != validation.sha256
