"""Series that are made up, against oracles that are written another way."""

from __future__ import annotations

import math

import numpy as np

from carousel.training.corpus.series.mackey_glass import MackeyGlass, mackey_glass


def test_mackey_glass_solves_the_first_delay_in_closed_form() -> None:
    """While the past is the constant s, the equation is linear: x(t) = f / 0.1 + (s - f / 0.1) exp(-0.1 t)."""
    start = np.array([0.5, 1.2])
    seen = mackey_glass(start, 18)
    for row, s in enumerate(start):
        level = 0.2 * s / (1 + s**10) / 0.1
        expected = [level + (s - level) * math.exp(-0.1 * t) for t in range(18)]
        np.testing.assert_allclose(seen[row], expected, rtol=0, atol=1e-9)


def test_mackey_glass_converges_with_order_four() -> None:
    """Halving the step divides the error by 16, past several delays, where the past is no constant."""
    truth = mackey_glass(np.array([1.2]), 120, steps=80)[0]
    errors = [abs(mackey_glass(np.array([1.2]), 120, steps=steps)[0] - truth).max() for steps in (5, 10, 20)]
    assert errors[1] < 1e-6
    assert 10 < errors[0] / errors[1] < 25
    assert 10 < errors[1] / errors[2] < 25


def test_mackey_glass_is_chaotic_and_bounded() -> None:
    near = mackey_glass(np.array([1.2, 1.2 + 1e-9]), 3000)
    assert 0.2 < near[:, 1000:].min() < 0.5
    assert 1.2 < near[:, 1000:].max() < 1.5
    assert abs(near[0] - near[1])[-500:].max() > 1e-4


def test_mackey_glass_target_is_the_value_a_horizon_later() -> None:
    drawn = MackeyGlass(length=100, horizon=84).draw(np.random.default_rng(1), 2)
    assert drawn.inputs.shape == drawn.targets.shape == (2, 100, 1)
    assert np.array_equal(drawn.inputs[:, 84:], drawn.targets[:, :16])
    assert not np.array_equal(drawn.inputs[0], drawn.inputs[1])
