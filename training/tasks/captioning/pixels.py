"""Pictures as pixels, for models whose encoder learns with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from carousel.models.codec.image import Preprocessing
from carousel.models.strict import Count, Strict
from carousel.training.corpus.album import OpenPicture


class OwnEncoder(Strict):
    """The model's own convolutional encoder; of no account where [features] names files."""

    width: Annotated[int, Field(ge=8, le=1024)] = 64
    """What pictures are brought to, in pixels."""
    height: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (32, 64, 128)
    """Of each stage; each halves the picture."""


class PixelImages:
    """Pictures that are read and preprocessed each time they are needed.

    Args:
        names: in the order that `read` counts by.
        open_picture: a picture by name, upright and in RGB.
        preprocessing: what serving will do to an image.
    """

    versions = 1

    def __init__(self, names: Sequence[str], open_picture: OpenPicture, preprocessing: Preprocessing) -> None:
        self._names = names
        self._open = open_picture
        self._preprocessing = preprocessing

    def read(self, places: Sequence[int], _versions: Sequence[int]) -> Tensor:
        """Pictures by their place in `names`; there is one version of each. <float32>[N, 3, height, width]"""
        preprocessing = self._preprocessing
        pictures = (self._open(self._names[place], preprocessing.side) for place in places)
        return torch.from_numpy(np.stack([preprocessing.apply(picture) for picture in pictures]))
