"""Optimisers, the learning rate's course, and the limits on a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from carousel.training.sections import Optimizer, Schedule


def build_optimizer(settings: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the module's parameters; weight decay falls on matrices only."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    match settings.kind:
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.learning_rate)


def learning_rate(peak: float, schedule: Schedule, step: int, total_steps: int) -> float:
    """The learning rate of update `step`, counted from 0: linear warm-up, then level or a half cosine."""
    warm = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.shape == "constant":
        return peak * warm
    fall = 0.5 * (1.0 + math.cos(math.pi * step / total_steps))  # 1 -> 0 (Loshchilov & Hutter 2017)
    return warm * (schedule.final_learning_rate + (peak - schedule.final_learning_rate) * fall)


def clip_gradients(parameters: Iterable[nn.Parameter], settings: Optimizer) -> None:
    """Clip by value, then by norm, as far as the recipe asks for either."""
    parameters = list(parameters)
    if settings.clip_value:
        clip_grad_value_(parameters, settings.clip_value)
    if settings.clip_norm:
        clip_grad_norm_(parameters, settings.clip_norm)


def named_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `<parameter>.<slot>`, e.g. `projection.weight.exp_avg`."""
    return {
        f"{name}.{slot}": value
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def restore_state(optimizer: torch.optim.Optimizer, module: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """The inverse of named_state."""
    parameters = dict(module.named_parameters())
    for key, value in saved.items():
        name, _, slot = key.rpartition(".")
        parameter = parameters[name]
        # A clone: tensors read from a file may lie at any address, and alignment can decide the last bit of a sum.
        optimizer.state[parameter][slot] = value.to(parameter.device, copy=True)
