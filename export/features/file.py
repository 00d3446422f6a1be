"""The features of a set of images, computed by a frozen extractor and written to one file.

Axes: N images, P positions of a feature map, D features of a position.

Training never runs the encoder: it reads this file (models/features.py says what is in it), as often as it likes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from tqdm import tqdm

from carousel.export.extractor import Extractor, ExtractorError
from carousel.export.runtime import open_session
from carousel.models.codec.image import Preprocessing, read_image
from carousel.models.errors import ImageRejected
from carousel.models.features import FEATURES, METADATA_KEY, FeaturesHeader
from carousel.models.output_file import check_output, open_output
from carousel.models.step import IMAGE

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Of the files of a directory or zip that are taken for images."""

BATCH = 16
"""Images of one call; more gained nothing on a CPU."""


def write_features(
    extractor: Extractor, sources: Sequence[Path], output: Path, *, flip: bool = False
) -> FeaturesHeader:
    """Run the extractor over every image and write the features, one batch in memory at a time.

    Args:
        extractor: of open_extractor.
        sources: directories and zips of images; order and names are theirs.
        output: the safetensors file, written as models.output_file says; its directory is made if absent.
        flip: take the mirror images.

    Raises:
        OutputError: nothing can be written there.
        ExtractorError: there is no image, or two of one name.
        ImageRejected: an image cannot be read; it is named.
    """
    check_output(output, make_parents=True)
    names = [name for source in sources for name in _names(source)]
    if not names:
        raise ExtractorError(
            f"{', '.join(map(str, sources))}: no image; files ending in {', '.join(SUFFIXES)} are read"
        )
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ExtractorError(f"image {twice!r} is there more than once; the sources' names must differ")
    header = FeaturesHeader(encoder=extractor.encoder, flipped=flip, images=tuple(names))
    session = open_session(extractor.model.SerializeToString())
    images = _images(sources, extractor.encoder.preprocessing, flip)
    with (
        open_output(output, make_parents=True) as file,
        tqdm(total=len(names), unit="image", disable=None) as bar,
    ):
        file.write(_safetensors_head(header, extractor.shape))
        while batch := list(islice(images, BATCH)):
            (features,) = session.run([FEATURES], {IMAGE: np.stack(batch)})  # [B, P, D] or [B, D]
            file.write(features.astype("<f4", copy=False).tobytes())
            bar.update(len(batch))
    return header


def _safetensors_head(header: FeaturesHeader, shape: tuple[int, ...]) -> bytes:
    """What precedes the numbers of a safetensors file: the library writes only tensors that are in memory whole."""
    count = len(header.images)
    entry = {"dtype": "F32", "shape": [count, *shape], "data_offsets": [0, 4 * count * int(np.prod(shape))]}
    text = json.dumps({"__metadata__": {METADATA_KEY: header.model_dump_json()}, FEATURES: entry}).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _names(source: Path) -> list[str]:
    """The images of a directory, by path within it, or of a zip, in a fixed order."""
    try:
        if source.is_dir():
            found = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        else:
            with zipfile.ZipFile(source) as archive:
                found = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile:
        raise ExtractorError(f"{source}: is neither a directory nor a zip of images") from None
    return sorted(name for name in found if name.lower().endswith(SUFFIXES) and not name.startswith("__MACOSX/"))


def _images(sources: Sequence[Path], preprocessing: Preprocessing, flip: bool) -> Iterator[npt.NDArray[np.float32]]:
    """Every image as the extractor takes it, in the order of _names. <float32>, of `preprocessing.shape`"""
    for source in sources:
        for name, content in _contents(source):
            try:
                image = read_image(content, preprocessing.side)
            except ImageRejected as error:
                raise ImageRejected(f"{source}: {name}: {error}") from None
            yield preprocessing.apply(ImageOps.mirror(image) if flip else image)


def _contents(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        yield from ((name, (source / name).read_bytes()) for name in _names(source))
        return
    with zipfile.ZipFile(source) as archive:
        for name in _names(source):
            try:
                yield name, archive.read(name)
            except (
                zipfile.BadZipFile,
                RuntimeError,
                NotImplementedError,
            ) as error:  # broken, encrypted, unknown method
                raise ImageRejected(f"{source}: {name}: cannot be unpacked ({error})") from None
