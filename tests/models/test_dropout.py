"""Locked dropout, dropped weights and dropped words."""

from __future__ import annotations

import torch
from torch import nn

from carousel.models.nn.dropout import LockedDropout, drop_weight, drop_words, sequence_dropout


def test_locked_dropout_keeps_one_mask_per_row_over_all_steps() -> None:
    torch.manual_seed(1)
    y = LockedDropout(0.25).train()(torch.ones(5, 3, 400))  # [T, B, H]
    assert torch.equal(y, y[:1].expand_as(y))
    assert not torch.equal(y[0, 0], y[0, 1])
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((y == 0).float().mean().item() - 0.25) < 0.05


def test_locked_dropout_draws_another_mask_for_the_next_window() -> None:
    torch.manual_seed(1)
    dropout, x = LockedDropout(0.5).train(), torch.ones(2, 3, 40)
    assert not torch.equal(dropout(x), dropout(x))


def test_locked_dropout_does_nothing_in_evaluation() -> None:
    x = torch.randn(4, 3, 5)
    assert torch.equal(LockedDropout(0.5).eval()(x), x)
    assert torch.equal(LockedDropout(0.0).train()(x), x)


def test_sequence_dropout_is_locked_or_drawn_at_every_step() -> None:
    torch.manual_seed(1)
    assert isinstance(sequence_dropout(0.5, locked=True), LockedDropout)
    free = sequence_dropout(0.5, locked=False)
    assert isinstance(free, nn.Dropout)
    y = free.train()(torch.ones(4, 3, 50))
    assert not torch.equal(y[0], y[1])


def test_drop_words_zeroes_whole_rows_and_rescales_the_others() -> None:
    torch.manual_seed(1)
    dropped = drop_words(torch.ones(500, 3), 0.2)  # [V, E]
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs((dropped[:, 0] == 0).float().mean().item() - 0.2) < 0.06


def test_drop_weight_zeroes_single_entries_in_training_only() -> None:
    torch.manual_seed(1)
    weight = torch.ones(40, 30)
    assert torch.equal(drop_weight(weight, 0.5, training=False), weight)
    dropped = drop_weight(weight, 0.5, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.any(dim=0).all()
    assert dropped.any(dim=1).all()
