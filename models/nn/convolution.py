"""A small residual network over images, for encoders that are trained from scratch.

Axes: B batch rows, H and W an image's height and width, D features of a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
"""Channels are normalised in so many groups, within one image. Not batch statistics: a row must not see the others."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS if channels % GROUPS == 0 else 1, channels)


class ResidualBlock(nn.Module):
    """y = relu(f(x) + s(x)), f two 3x3 convolutions, s the identity or a 1x1 convolution (He et al. 2016).

    He et al., arXiv:1512.03385; group normalisation: Wu & He 2018, arXiv:1803.08494.
    """

    def __init__(self, below: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(below, channels, 3, stride, padding=1, bias=False)
        self.first_norm = _norm(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = _norm(channels)
        same = below == channels and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(below, channels, 1, stride, bias=False)
        nn.init.zeros_(self.second_norm.weight)  # each block begins as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """<float32>[B, below, H, W] -> <float32>[B, channels, H / stride, W / stride]"""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """A convolution that halves the image, then for each stage after the first a block that halves and one that stays.

    Args:
        channels: of each stage; the last is D. The map is 2 ** len(channels) times smaller than the image.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, *_ = channels
        self.stem = nn.Conv2d(3, first, 5, 2, padding=2, bias=False)
        self.stem_norm = _norm(first)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(below, above, stride)
                for narrow, wide in pairwise(channels)
                for below, above, stride in ((narrow, wide, 2), (wide, wide, 1))
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """The map of features, row by row. <float32>[B, 3, H, W] -> <float32>[B, P, D]"""
        y: Tensor = self.blocks(functional.relu(self.stem_norm(self.stem(images))))  # [B, D, rows, columns]
        return y.flatten(2).transpose(1, 2)  # [B, P, D]


def map_shape(height: int, width: int, channels: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the map of an image: each stage halves a side, rounding up."""
    return -(-height // (1 << len(channels))), -(-width // (1 << len(channels)))
