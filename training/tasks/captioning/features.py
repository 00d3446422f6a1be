"""Features of a frozen encoder, computed once and read from a file as they are needed.

Axes: N images, P positions, D features of a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from carousel.models.features import FEATURES, METADATA_KEY, FeaturesHeader
from carousel.models.strict import Strict
from carousel.training.corpus.files import Paths
from carousel.training.errors import CorpusError


class FeatureFiles(Strict):
    """Features of a frozen encoder, as `python -m export.features` writes them."""

    train: Paths = Field(default=[])
    """One file, or several of the same pictures (as they are, and mirrored): each time a picture is read, one of them
    is drawn. None: the model's own encoder reads the pictures."""
    validation: str = ""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if bool(self.train) != bool(self.validation):
            raise ValueError("train and validation go together; set both or neither")
        return self


class FeatureFile:
    """One file that `python -m export.features` wrote, mapped into memory.

    Args:
        path: the file.
        key: of the recipe, for the errors' sentences.

    Raises:
        CorpusError: there is no such file, or it is none of features.
    """

    def __init__(self, path: Path, key: str) -> None:
        if not path.is_file():
            raise CorpusError(f"{key}: there is no file {path}; python -m export.features writes it")
        try:
            self._file = safe_open(path, framework="pt")
            header = (self._file.metadata() or {})[METADATA_KEY]  # type: ignore[no-untyped-call]
            self.header = FeaturesHeader.model_validate_json(header)
            self._features = self._file.get_slice(FEATURES)  # type: ignore[no-untyped-call]
        except (SafetensorError, KeyError, ValidationError):
            raise CorpusError(f"{key}: {path} is no file of features; python -m export.features writes one") from None
        self._rows = {name: row for row, name in enumerate(self.header.images)}
        self._path, self._key = path, key

    def require(self, names: Sequence[str]) -> None:
        """See that the file has these pictures.

        Raises:
            CorpusError: it lacks one.
        """
        for name in names:
            if name not in self._rows:
                raise CorpusError(
                    f"{self._key}: {self._path} has no picture {name!r}, which the captions name; "
                    "compute its features too"
                )

    def read(self, name: str) -> Tensor:
        """The features of a picture that the file has. <float32>[P, D] or [D]"""
        features: Tensor = self._features[self._rows[name]]
        return features


class FeatureImages:
    """Pictures as their features, one of several versions of each.

    Args:
        paths: files of the same pictures by the same encoder.
        names: the pictures, in the order that `read` counts by.
        key: of the recipe, for the errors' sentences.
        pooled: only the mean over the positions is wanted.

    Raises:
        CorpusError: a file cannot be used, lacks a picture, or is of another encoder than the first.
    """

    def __init__(self, paths: Sequence[str], names: Sequence[str], key: str, *, pooled: bool) -> None:
        self._files = [FeatureFile(Path(path), key) for path in paths]
        self.encoder = self._files[0].header.encoder
        for path, file in zip(paths, self._files, strict=True):
            file.require(names)
            if file.header.encoder != self.encoder:
                raise CorpusError(f"{key}: {path} is of another encoder than {paths[0]}; compute both with the same")
        self._names = names
        self._pooled: list[Tensor] | None = None
        if pooled:  # a hundredth of the bytes, kept; the map would be read and averaged anew each time
            self._pooled = [torch.stack([_mean(file.read(name)) for name in names]) for file in self._files]
        self.versions = len(self._files)

    def read(self, places: Sequence[int], versions: Sequence[int]) -> Tensor:
        """Pictures by their place in `names`, each in the version asked for. <float32>[N, P, D], or pooled [N, D]"""
        chosen = zip(places, versions, strict=True)
        if self._pooled is not None:
            return torch.stack([self._pooled[version][place] for place, version in chosen])
        return torch.stack([self._files[version].read(self._names[place]) for place, version in chosen])


def _mean(features: Tensor) -> Tensor:
    return features.mean(0) if features.dim() == 2 else features
