"""Pictures as pixels, for models whose encoder learns with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from models.codec.image import Preprocessing


class PixelImages:
    """Pictures that are read and preprocessed each time they are needed.

    Args:
        names: in the order that `read` counts by.
        open_picture: a picture by name, upright and in RGB.
        preprocessing: what serving will do to an image.
    """

    versions = 1

    def __init__(
        self, names: Sequence[str], open_picture: Callable[[str], Image], preprocessing: Preprocessing
    ) -> None:
        self._names = names
        self._open = open_picture
        self._preprocessing = preprocessing

    def read(self, places: Sequence[int], _versions: Sequence[int]) -> Tensor:
        """Pictures by their place in `names`; there is one version of each. <float32>[N, 3, height, width]"""
        return torch.from_numpy(np.stack([self._preprocessing.apply(self._open(self._names[at])) for at in places]))
