"""Products of matrices in bfloat16, on whatever machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from carousel.training.sections import Run


@contextmanager
def autocast(run: Run) -> Iterator[None]:
    """Multiply matrices in the run's precision."""
    in_bfloat16 = run.precision == "bf16"
    kernels = bool(torch.backends.mkldnn.enabled)
    if in_bfloat16 and run.device == "cpu":
        torch.backends.mkldnn.enabled = kernels and _onednn_runs_lstms()  # type: ignore[assignment]  # a property
    try:
        with torch.autocast(run.device, torch.bfloat16, enabled=in_bfloat16):
            yield
    finally:
        torch.backends.mkldnn.enabled = kernels  # type: ignore[assignment]  # a property


@cache
def _onednn_runs_lstms() -> bool:
    """Whether oneDNN has kernels for an LSTM in bfloat16: none on x86 processors without AVX-512.

    torch (2.13) hands it one all the same, and raises, where its own kernels would do.
    """
    with torch.random.fork_rng([]), torch.autocast("cpu", torch.bfloat16):
        try:
            nn.LSTM(2, 2)(torch.zeros(2, 1, 2))
        except RuntimeError:
            return False
    return True
