"""The loss around a network's weights, and where one plain gradient step leads, clipped and not (Pascanu et al. 2013).

Axes: P points on a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from carousel.training.task import Task


@dataclass(frozen=True, slots=True)
class Surface:
    """A plane through the weights: downhill, and a direction at random, at right angles to it."""

    along: Tensor
    """Distances on either axis. <float>[P]"""
    losses: Tensor
    """<float>[P downhill, P aside]"""
    gradient: float
    """The norm."""
    plain: tuple[float, float]
    """A step of learning rate times gradient: how far it goes downhill, and the loss there."""
    clipped: tuple[float, float]
    """Likewise of the gradient at a norm of at most the clip."""


def surface(task: Task[Any, Any], window: object, rate: float, clip: float, points: int = 15) -> Surface:
    """The loss of a window on a square of two tenths of the weights' norm to either side. Weights stay as they are.

    Args:
        task: with the module's present weights.
        window: of the task.
        rate: learning rate of the step that is shown.
        clip: largest norm of the gradient; 0 is no limit.
        points: P
    """
    module, training = task.module, task.module.training
    module.eval()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss, _ = task.loss(window, task.initial_state())
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradient = torch.cat([
        (torch.zeros_like(parameter) if part is None else part).flatten()
        for part, parameter in zip(parts, parameters, strict=True)
    ])  # fmt: skip
    norm = float(gradient.norm())
    downhill = -gradient / max(norm, 1e-30)
    aside = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0)).to(gradient)
    aside -= (aside @ downhill) * downhill
    aside /= aside.norm()
    start = parameters_to_vector(parameters).detach().clone()

    @torch.no_grad()
    def at(x: float, y: float) -> float:
        vector_to_parameters(start + x * downhill + y * aside, parameters)
        value, _ = task.loss(window, task.initial_state())
        return float(value)

    try:
        side = 0.2 * float(start.norm())
        along = torch.linspace(-side, side, points)
        losses = torch.tensor([[at(x, y) for y in along.tolist()] for x in along.tolist()])
        plain, clipped = rate * norm, rate * min(norm, clip or norm)
        return Surface(along, losses, norm, (plain, at(plain, 0)), (clipped, at(clipped, 0)))
    finally:
        vector_to_parameters(start, parameters)
        module.train(training)
