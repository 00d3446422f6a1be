"""Captioned pictures to learn from and to be measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from PIL.Image import Image
from pydantic import Field, model_validator
from tqdm import tqdm

from carousel.models.codec.image import read_image
from carousel.models.errors import ImageRejected
from carousel.models.strict import Count, CountOrNone, Strict
from carousel.training.corpus.caption_files import read_captions
from carousel.training.corpus.captions import CaptionedImage
from carousel.training.corpus.pictures import Pictures
from carousel.training.corpus.scene_drawing import draw_scene
from carousel.training.corpus.scene_words import describes, scene_captions
from carousel.training.corpus.scenes import Scene, make_scenes, scenes_sha256
from carousel.training.errors import CorpusError

SECONDS_BEFORE_BAR = 2.0
"""A look at all pictures that takes longer shows how far it is."""


class CaptionFiles(Strict):
    """Captions and pictures: files, or scenes that are made up."""

    kind: Literal["tsv", "flickr8k", "coco", "csv", "generated"] = "tsv"
    train: str = ""
    """The captions; plain or .gz."""
    validation: str = ""
    train_list: str = ""
    """Names, one a line: only these of the pictures in `train` are taken; empty is all."""
    validation_list: str = ""
    train_pictures: str = ""
    """Directory or zip of the pictures; none where [features] names files."""
    validation_pictures: str = ""
    image: str = "image"
    """csv: the column of the picture's name."""
    caption: str = "caption"
    """csv: the column of a caption."""
    scenes: Annotated[int, Field(ge=2)] = 10_000
    """generated: how many to learn from."""
    validation_scenes: Count = 500
    """generated: how many more to be measured on."""
    seed: CountOrNone = 1
    """generated: of the scenes."""

    @model_validator(mode="after")
    def _files_fit_kind(self) -> Self:
        if self.kind == "generated" and (self.train or self.validation):
            raise ValueError("kind generated reads no files; leave out train and validation")
        if self.kind != "generated" and not (self.train and self.validation):
            raise ValueError(f"kind {self.kind} takes two files of captions; set corpus.train and corpus.validation")
        return self


class OpenPicture(Protocol):
    """Opens a picture by name, upright and in RGB."""

    def __call__(self, name: str, side: int | None = None, /) -> Image:
        """The picture; `side` as read_image has it."""
        ...


@dataclass(frozen=True, slots=True)
class Album:
    """Captioned pictures."""

    pictures: Sequence[CaptionedImage]
    open_picture: OpenPicture | None
    """None where the recipe says only where the features are."""
    sha256: str
    """Of the file of captions, unpacked, or of it and the list of names; of the scenes where they are made up."""
    is_true: Callable[[str, str], bool] | None = None
    """Whether a caption is true of the picture of a name; known only of scenes."""

    @property
    def names(self) -> list[str]:
        """The pictures' names, in order."""
        return [picture.name for picture in self.pictures]

    @property
    def captions(self) -> list[str]:
        """All captions of all pictures."""
        return [caption for picture in self.pictures for caption in picture.captions]

    def require_pictures(self, key: str, side: int | None = None) -> None:
        """Open every picture once, so that a run does not end in the midst of an epoch for want of one.

        Args:
            key: of the recipe, for the error's sentence.
            side: as read_image has it.

        Raises:
            CorpusError: some cannot be read; how many, and why the first cannot.
        """
        if self.open_picture is None or self.is_true is not None:  # scenes are drawn, not read
            return
        failures = []
        for name in tqdm(self.names, f"looking at {key}", unit="picture", delay=SECONDS_BEFORE_BAR, leave=False):
            try:
                self.open_picture(name, side)
            except CorpusError as error:
                failures.append(str(error))
        if failures:
            raise CorpusError(
                f"{failures[0]}"
                if len(failures) == 1
                else f"{failures[0]}; {len(failures):,} of {len(self.names):,} pictures cannot be read"
            )


def read_albums(files: CaptionFiles) -> tuple[Album, Album]:
    """The pictures to learn from, and those to be measured on.

    Raises:
        CorpusError: a file cannot be used.
    """
    validation = read_validation(files)
    if files.kind == "generated":
        return _of_scenes(make_scenes(files.seed, files.scenes)), validation
    train = _read(files, files.train, files.train_list, files.train_pictures, "train")
    shared = set(train.names) & set(validation.names)
    same = files.train == files.validation or files.train_pictures == files.validation_pictures != ""
    if shared and same:  # in two places, one name may be of two pictures
        raise CorpusError(f"picture {min(shared)!r} is both in corpus.train and in corpus.validation; list it in one")
    return train, validation


def read_validation(files: CaptionFiles) -> Album:
    """The pictures to be measured on alone.

    Raises:
        CorpusError: a file cannot be used.
    """
    if files.kind == "generated":
        return _of_scenes(make_scenes(files.seed, files.validation_scenes, first=files.scenes))
    return _read(files, files.validation, files.validation_list, files.validation_pictures, "validation")


def _read(files: CaptionFiles, captions: str, listed_in: str, pictures: str, part: str) -> Album:
    key = f"corpus.{part}"
    images, digest = read_captions(
        Path(captions),
        files.kind if files.kind != "generated" else "tsv",
        key,
        listed_in=Path(listed_in) if listed_in else None,
        image_column=files.image,
        caption_column=files.caption,
    )
    if listed_in:
        names = "\n".join(image.name for image in images)
        digest = hashlib.sha256(f"{digest}\n{names}".encode()).hexdigest()
    return Album(images, _opener(Pictures(Path(pictures), f"{key}_pictures")) if pictures else None, digest)


def _opener(pictures: Pictures) -> OpenPicture:
    def open_picture(name: str, side: int | None = None) -> Image:
        try:
            return read_image(pictures.read(name), side)
        except ImageRejected as error:
            raise CorpusError(f"{pictures.key}: picture {name!r}: {error}") from None

    return open_picture


def _of_scenes(scenes: Sequence[Scene]) -> Album:
    by_name = {f"scene-{scene.index}": scene for scene in scenes}
    images = [CaptionedImage(name, scene_captions(scene)) for name, scene in by_name.items()]
    return Album(
        images,
        lambda name, _side=None: draw_scene(by_name[name]),
        scenes_sha256(scenes),
        lambda name, caption: describes(caption, by_name[name]),
    )
