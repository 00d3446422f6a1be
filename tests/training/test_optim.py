"""The learning rate's course, decay on matrices only, and the limits on a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carousel.training.optim import build_optimizer, clip_gradients, learning_rate
from carousel.training.sections import Optimizer, Schedule


def test_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    schedule = Schedule(warmup_steps=4, final_learning_rate=0.1)
    rates = [learning_rate(2.1, schedule, step, 100) for step in (0, 1, 3, 50, 100)]
    assert rates[0] == pytest.approx(2.1 / 4)
    assert rates[1] == pytest.approx(2.1 / 2, rel=1e-3)
    assert rates[2] == pytest.approx(2.1, rel=3e-3)
    assert rates[3] == pytest.approx(1.1)  # half-way between 2.1 and 0.1
    assert rates[4] == pytest.approx(0.1)


def test_learning_rate_constant_stays_after_warming_up() -> None:
    schedule = Schedule(shape="constant", warmup_steps=2)
    assert [learning_rate(3.0, schedule, step, 10) for step in (0, 1, 9)] == [1.5, 3.0, 3.0]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizer_decays_matrices_and_leaves_biases_alone(kind: str) -> None:
    layer = nn.Linear(3, 2)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(Optimizer(kind=kind, learning_rate=0.1, weight_decay=0.5), layer)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, torch.full((2, 3), 0.95))
    assert torch.equal(layer.bias, torch.ones(2))


def with_gradient(*values: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def test_clipping_limits_the_norm_over_all_parameters() -> None:
    a, b = with_gradient(3.0, 0.0), with_gradient(4.0)
    clip_gradients([a, b], Optimizer(clip_norm=1.0))
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(b.grad, torch.tensor([0.8]), rtol=1e-4, atol=0)


def test_clipping_limits_each_value_first() -> None:
    a = with_gradient(30.0, -0.2, -7.0)
    clip_gradients([a], Optimizer(clip_value=0.5, clip_norm=0.0))
    assert a.grad.tolist() == pytest.approx([0.5, -0.2, -0.5])


def test_clipping_can_be_off() -> None:
    a = with_gradient(1e6)
    clip_gradients([a], Optimizer(clip_norm=0.0))
    assert a.grad.item() == 1e6
