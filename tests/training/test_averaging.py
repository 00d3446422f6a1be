"""Averages of weights against their closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carousel.training.averaging import WeightAverage
from carousel.training.sections import Averaging


class Scalar(nn.Module):
    """One weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))


def follow(average: WeightAverage, module: Scalar, values: list[float]) -> None:
    for value in values:
        module.weight.data.fill_(value)
        average.update()


def averaged(average: WeightAverage, module: Scalar) -> float:
    with average.applied():
        return module.weight.item()


def test_average_of_kind_none_is_the_weights() -> None:
    module = Scalar(1.0)
    average = WeightAverage(Averaging(), module)
    follow(average, module, [2.0, 5.0])
    assert averaged(average, module) == 5.0
    assert not average.tensors


def test_exponential_average_fades_its_start_and_then_keeps_its_decay() -> None:
    module = Scalar(100.0)
    average = WeightAverage(Averaging(kind="ema", decay=0.5), module)
    values = [float(value) for value in range(1, 30)]
    follow(average, module, values)
    expected = 100.0
    for step, value in enumerate(values):
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    assert averaged(average, module) == pytest.approx(expected, rel=1e-6)
    assert abs(averaged(average, module) - 28.0) < 0.01  # 29 - 1 * decay / (1 - decay)
    assert module.weight.item() == 29.0  # the trained weights are back


def test_nt_asgd_averages_from_the_first_stagnation_on() -> None:
    module = Scalar(0.0)
    average = WeightAverage(Averaging(kind="nt-asgd", patience=2), module)
    for figure in (5.0, 4.0, 4.5, 4.2):  # 4.5 and 4.2 are better than the best of two validations before: 5.0
        follow(average, module, [7.0])
        average.observe(figure)
        assert not average.active
    average.observe(4.1)  # worse than 4.0, the best up to two validations before
    assert average.active
    follow(average, module, [1.0, 2.0, 6.0])
    assert averaged(average, module) == pytest.approx(3.0)


def test_average_puts_the_trained_weights_back_after_a_failure() -> None:
    module = Scalar(0.0)
    average = WeightAverage(Averaging(kind="ema", decay=0.9), module)
    follow(average, module, [3.0])
    with pytest.raises(RuntimeError, match="validation failed"), average.applied():
        raise RuntimeError("validation failed")
    assert module.weight.item() == 3.0
