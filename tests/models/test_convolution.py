"""The residual network: its map, and that an image sees no other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from carousel.models.nn.convolution import ResidualBlock, ResidualNetwork, map_shape


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (8, 9)])
@pytest.mark.parametrize("channels", [(8,), (8, 12), (5, 8, 16)])
def test_network_makes_the_map_that_is_announced(height: int, width: int, channels: tuple[int, ...]) -> None:
    rows, columns = map_shape(height, width, channels)
    assert ResidualNetwork(channels)(torch.randn(2, 3, height, width)).shape == (2, rows * columns, channels[-1])


def test_network_gives_positions_row_by_row() -> None:
    network = ResidualNetwork((8, 6)).eval()
    still = torch.zeros(1, 3, 64, 96)
    lit = still.clone()
    lit[:, :, 60:, 92:] = 1.0  # the corner at the bottom right
    change = (network(lit) - network(still)).abs().sum(2)[0]
    assert int(change.argmax()) == 16 * 24 - 1


def test_network_sees_each_image_alone() -> None:
    torch.manual_seed(0)
    network = ResidualNetwork((8, 16)).train()
    images = torch.randn(3, 3, 16, 24)
    together = network(images)
    for row in range(3):
        torch.testing.assert_close(network(images[row : row + 1])[0], together[row])


def test_block_begins_as_its_shortcut() -> None:
    x = torch.randn(2, 8, 6, 10)
    assert torch.equal(ResidualBlock(8, 8, 1)(x), functional.relu(x))
    wider = ResidualBlock(8, 12, 2)
    torch.testing.assert_close(wider(x), functional.relu(functional.conv2d(x, wider.shortcut.weight, stride=2)))
