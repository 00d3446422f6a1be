from __future__ import annotations

import pytest
import torch
from torch import nn

from carousel.training import autocast
from carousel.training.sections import Run


@pytest.mark.parametrize("kernels", [True, False])
def test_lstm_runs_in_bfloat16_whatever_kernels_there_are(monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    if not kernels:
        monkeypatch.setattr(autocast, "_onednn_runs_lstms", lambda: False)
    torch.manual_seed(0)
    x, lstm = torch.randn(5, 3, 4), nn.LSTM(4, 6)
    expected, _ = lstm(x)
    with autocast.autocast(Run(task="language", precision="bf16")):
        seen, _ = lstm(x)
    assert 0 < (seen - expected).abs().max() < 0.02
    seen.sum().backward()
    assert lstm.weight_hh_l0.grad is not None
    assert torch.equal(lstm(x)[0], expected)  # and all is as before


def test_looking_for_kernels_draws_no_random_numbers() -> None:
    autocast._onednn_runs_lstms.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    autocast._onednn_runs_lstms()
    assert torch.equal(torch.rand(1), expected)
