"""Lanes and windows: contiguous, carried on, and a function of seed and epoch alone."""

from __future__ import annotations

import pytest
import torch

from carousel.training.errors import CorpusError
from carousel.training.tasks.language.batches import Lanes

N, LANES, WINDOW = 107, 3, 8  # 35 tokens a lane: 4 windows of 8, 2 left over


def make_lanes(seed: int = 1) -> Lanes:
    return Lanes(torch.arange(N), LANES, WINDOW, seed)


def test_lanes_go_on_where_the_window_before_ended() -> None:
    lanes = make_lanes()
    windows = list(lanes.windows(epoch=0))
    assert len(windows) == lanes.windows_per_epoch == 4
    ids = torch.cat([window.ids for window in windows], dim=1)
    targets = torch.cat([window.targets for window in windows], dim=1)
    assert ids.shape == targets.shape == (LANES, 4 * WINDOW)
    assert torch.equal(targets, (ids + 1) % N)  # the stream is 0, 1, 2, ..., and ends where it began
    assert torch.equal(ids[:, 0].diff() % N, torch.tensor([35, 35]))


def test_lanes_start_elsewhere_in_every_epoch_and_for_every_seed() -> None:
    starts = {int(next(make_lanes(seed).windows(epoch)).ids[0, 0]) for seed in (1, 2) for epoch in range(5)}
    assert len(starts) > 7


def test_lanes_can_be_entered_in_the_middle_of_an_epoch() -> None:
    whole = list(make_lanes().windows(epoch=3))
    rest = list(make_lanes().windows(epoch=3, start=2))
    assert len(rest) == 2
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets) for a, b in zip(whole[2:], rest, strict=True)
    )


def test_lanes_take_a_text_of_exactly_one_window() -> None:
    assert Lanes(torch.arange(27), 3, 8, seed=0).windows_per_epoch == 1


def test_lanes_refuse_a_text_shorter_than_one_window_per_lane() -> None:
    with pytest.raises(
        CorpusError, match=r"is 26 tokens, shorter than one window per lane; 3 lanes of 8 \+ 1 .* take 27"
    ):
        Lanes(torch.arange(26), 3, 8, seed=0)
