"""Means of the weights over the steps: less noise than the last step's weights, at no cost when serving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from carousel.training.sections import Averaging

WARMUP_STEPS = 10
"""At step k an exponential average keeps at most (1 + k) / (10 + k) of its past: the initial weights fade quickly."""


class WeightAverage:
    """The mean that a recipe asks for, kept beside the weights that are trained.

    - none: the weights themselves.
    - ema: m <- d m + (1 - d) w after every step (Polyak & Juditsky 1992, exponentially weighted), d rising to `decay`.
    - nt-asgd: the weights themselves, until validation has not improved for `patience` validations; from then on the
      plain mean over all steps since (Merity et al. 2017, arXiv:1708.02182, algorithm 1).
    """

    def __init__(self, settings: Averaging, module: nn.Module) -> None:
        self._settings = settings
        self._module = module
        self.steps = 0
        """Steps averaged so far."""
        self.history: list[float] = []
        """Validation figures before averaging began (nt-asgd)."""
        self.active = settings.kind == "ema"
        self._mean: dict[str, Tensor] = {}
        if self.active:
            self._begin()

    def _begin(self) -> None:
        self._mean = {name: weight.detach().clone() for name, weight in self._module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if not self.active:
            return
        if self._settings.kind == "ema":
            keep = min(self._settings.decay, (1 + self.steps) / (WARMUP_STEPS + self.steps))
        else:
            keep = self.steps / (self.steps + 1)
        self.steps += 1
        for name, weight in self._module.named_parameters():
            self._mean[name].lerp_(weight, 1.0 - keep)

    def observe(self, figure: float) -> None:
        """Take in a validation's figure (lower is better); this may start nt-asgd's averaging."""
        if self._settings.kind != "nt-asgd" or self.active:
            return
        earlier = self.history[: -self._settings.patience]
        if earlier and figure > min(earlier):
            self.active = True
            self._begin()
        else:
            self.history.append(figure)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the module has the averaged weights."""
        if not self._mean:
            yield
            return
        trained = {name: weight.detach().clone() for name, weight in self._module.named_parameters()}
        self._load(self._mean)
        try:
            yield
        finally:
            self._load(trained)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._module.named_parameters():
            weight.copy_(weights[name])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The mean by parameter name; empty while there is none."""
        return self._mean

    def restore(self, mean: Mapping[str, Tensor], steps: int, history: list[float], active: bool) -> None:
        """Go on from what `tensors`, `steps`, `history` and `active` were."""
        devices = {name: weight.device for name, weight in self._module.named_parameters()}
        self._mean = {name: value.to(devices[name], copy=True) for name, value in mean.items()}
        self.steps, self.history, self.active = steps, list(history), active
