import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors import safe_open

from carousel.export.extractor import Extractor, ExtractorError, open_extractor
from carousel.export.features import file as features_file
from carousel.export.features.__main__ import main
from carousel.export.features.file import write_features
from carousel.export.runtime import open_session
from carousel.models.codec.image import Preprocessing
from carousel.models.errors import ImageRejected
from carousel.models.features import FeaturesHeader

PREPROCESSING = Preprocessing(width=12, height=8, mean=(104, 117, 123), deviation=(1, 1, 1), channels="bgr")
NAMES = ("b.png", "deep/a.PNG", "deep/c.png")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (17, 23, 3), np.uint8))


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def extractor(make_extractor: Callable[..., Path]) -> Extractor:
    return open_extractor(make_extractor(), PREPROCESSING)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    (path / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        (path / name).write_bytes(png(seed))
    (path / "captions.txt").write_text("no image")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as file:
        for seed, name in reversed([*enumerate(NAMES)]):
            file.writestr(name, png(seed))
        file.writestr("__MACOSX/._b.png", "what macOS adds")
    return path


def read(path: Path) -> tuple[np.ndarray, FeaturesHeader]:
    with safe_open(path, framework="np") as file:
        assert list(file.keys()) == ["features"]
        return file.get_tensor("features"), FeaturesHeader.model_validate_json(file.metadata()["carousel"])


def expected(extractor: Extractor, seed: int, flip: bool = False) -> np.ndarray:
    image = ImageOps.mirror(picture(seed)) if flip else picture(seed)
    fed = PREPROCESSING.apply(image)[None]
    return open_session(extractor.model.SerializeToString()).run(["features"], {"image": fed})[0][0]


@pytest.mark.parametrize("source", ["directory", "archive"])
@pytest.mark.parametrize("flip", [False, True])
def test_features_file_holds_each_image_under_its_name(
    extractor: Extractor, source: str, flip: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = tmp_path / "features.safetensors"
    said = write_features(extractor, [request.getfixturevalue(source)], output, flip=flip)
    features, header = read(output)
    assert header == said
    assert header == FeaturesHeader(encoder=extractor.encoder, flipped=flip, images=NAMES)
    assert (features.shape, features.dtype) == ((3, 6, 5), np.float32)
    for seed in range(3):
        assert np.array_equal(features[seed], expected(extractor, seed, flip))


def test_features_of_more_images_than_a_batch_come_from_several_sources(
    extractor: Extractor, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "BATCH", 2)
    more = tmp_path / "more"
    more.mkdir()
    for seed in range(3, 7):
        (more / f"{seed}.webp").write_bytes(png(seed))  # content decides what it is, not the name
    write_features(extractor, [directory, more], tmp_path / "features.safetensors")
    features, header = read(tmp_path / "features.safetensors")
    assert header.images == (*NAMES, "3.webp", "4.webp", "5.webp", "6.webp")
    assert np.array_equal(features, np.stack([expected(extractor, seed) for seed in range(7)]))


def test_pooled_features_are_one_vector_an_image(make_extractor, directory: Path, tmp_path: Path) -> None:
    write_features(
        open_extractor(make_extractor(pool=True), PREPROCESSING), [directory], tmp_path / "features.safetensors"
    )
    features, header = read(tmp_path / "features.safetensors")
    assert (features.shape, header.encoder.grid) == ((3, 5), None)


def test_broken_image_is_named_and_the_file_before_stays(
    extractor: Extractor, directory: Path, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.safetensors"
    write_features(extractor, [directory], output)
    before = output.read_bytes()
    (directory / "deep" / "c.png").write_bytes(png(2)[:200])
    with pytest.raises(ImageRejected, match=r"pictures: deep/c\.png: image is broken \(PNG: [^\n]*$"):
        write_features(extractor, [directory], output)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PNG", content.index(b"deep/a.PNG")) + 50] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ImageRejected, match=r"pictures\.zip: deep/a\.PNG: cannot be unpacked \(Bad CRC-32[^\n]*$"):
        write_features(extractor, [archive], output)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.safetensors", "pictures", "pictures.zip"]


def test_sources_without_images_or_with_one_twice_are_refused(
    extractor: Extractor, directory: Path, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ExtractorError, match=r"image 'b\.png' is there more than once; the sources' names must differ$"
    ):
        write_features(extractor, [directory, archive], tmp_path / "o")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExtractorError, match=r"empty: no image; files ending in \.png, .* are read$"):
        write_features(extractor, [tmp_path / "empty"], tmp_path / "o")
    with pytest.raises(ExtractorError, match=r"captions\.txt: is neither a directory nor a zip of images$"):
        write_features(extractor, [directory / "captions.txt"], tmp_path / "o")


def test_cli_writes_what_training_reads(make_extractor, directory: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "features.safetensors"
    status = main(
        f"{make_extractor(size=(8, 8))} --images {directory} --output {output} --size 8 --mean 104 117 123 "
        "--deviation 2 --channels bgr --fit crop --input data --feature map".split()
    )
    said = capsys.readouterr()
    assert (status, said.out) == (0, f"wrote {output}: 3 images, 2 x 2 positions of 5 features\n")
    features, header = read(output)
    assert features.shape == (3, 4, 5)
    assert header.encoder.preprocessing == Preprocessing(
        width=8, height=8, mean=(104, 117, 123), deviation=(2, 2, 2), channels="bgr", fit="crop"
    )
    assert (header.encoder.input, header.encoder.feature) == ("data", "map")


def test_cli_makes_the_directory_and_writes_through_links_and_pipes(
    make_extractor, directory: Path, tmp_path: Path, capsys
) -> None:
    begin = [str(make_extractor()), "--images", str(directory), "--size", "8", "--output"]
    plain = tmp_path / "runs" / "features" / "train.safetensors"
    assert main([*begin, str(plain)]) == 0
    link, pipe, log = tmp_path / "link", tmp_path / "pipe", tmp_path / "log"
    link.symlink_to("target")
    assert main([*begin, str(link)]) == 0
    assert (link.is_symlink(), (tmp_path / "target").read_bytes()) == (True, plain.read_bytes())
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        assert main([*begin, str(pipe)]) == 0
        assert reader.result(timeout=30) == plain.read_bytes()
    python = [sys.executable, "-m", "export.features"]
    with log.open("wb") as file:
        subprocess.run([*python, *begin, "/dev/stdout"], stdout=file, stderr=subprocess.DEVNULL, check=True)
    assert log.read_bytes() == plain.read_bytes()  # and no sentence among them


def test_cli_refuses_a_directory_before_the_work(directory: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "none.onnx").write_bytes(b"")  # which would be refused, too
    assert (
        main([str(tmp_path / "none.onnx"), "--images", str(directory), "--size", "8", "--output", str(tmp_path)]) == 1
    )
    assert capsys.readouterr().err == f"export.features: {tmp_path}: is a directory; give the path of a file\n"


def test_cli_says_in_one_sentence_what_is_wrong(make_extractor, directory: Path, tmp_path: Path, capsys) -> None:
    begin = [str(make_extractor()), "--images", str(directory), "--output", str(tmp_path / "o")]
    assert main([*begin, "--size", "8", "--feature", "pool5"]) == 1
    error = capsys.readouterr().err
    assert error == "export.features: tiny.onnx: computes no tensor 'pool5'; its outputs are features, logits\n"
    assert main([*begin[:2], str(tmp_path / "nowhere.zip"), *begin[3:], "--size", "8"]) == 1
    assert "No such file or directory" in capsys.readouterr().err
    for flags, message in [
        (["--size", "0"], "argument --size: Input should be greater than or equal to 1"),
        (["--size", "8", "--mean", "1", "2"], "argument --mean: "),
        (["--size", "8", "--deviation", "0"], "argument --deviation: Input should be greater than 0"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main([*begin, *flags])
        assert message in capsys.readouterr().err


def test_features_file_is_laid_out_as_safetensors_says(extractor: Extractor, directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    write_features(extractor, [directory], output)
    content = output.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # numbers that are mapped into memory must be aligned
    entry = json.loads(content[8 : 8 + length])["features"]
    assert entry == {"dtype": "F32", "shape": [3, 6, 5], "data_offsets": [0, len(content) - 8 - length]}
