"""Series that are made up, against oracles that are written another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle
from carousel.training.__main__ import main
from carousel.training.corpus.series.adding import Adding
from carousel.training.corpus.series.lag import Lag
from carousel.training.corpus.series.mackey_glass import MackeyGlass, mackey_glass
from carousel.training.corpus.series.sines import Sines
from carousel.training.errors import RecipeError
from carousel.training.recipe import load_recipe
from carousel.training.task import TASKS

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


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


def test_adding_asks_the_sum_of_two_marked_numbers() -> None:
    drawn = Adding(length=21).draw(np.random.default_rng(3), 500)
    for inputs, targets, asked in zip(drawn.inputs, drawn.targets, drawn.asked, strict=True):
        marked = [number for number, mark in inputs if mark == 1]
        assert len(marked) == 2
        assert targets[-1, 0] == sum(marked)
        assert asked.tolist() == [False] * 20 + [True]
    assert abs(drawn.targets[:, -1].var() - 1 / 6) < 0.03


def test_lag_keeps_its_symbol_for_as_many_steps_and_ends_at_random() -> None:
    drawn = Lag(length=30).draw(np.random.default_rng(3), 300)
    ends = []
    for inputs, targets, asked in zip(drawn.inputs, drawn.targets, drawn.asked, strict=True):
        symbols = [int(row.argmax()) if row.any() else None for row in inputs]
        (end,) = np.flatnonzero(asked)
        assert (symbols[0], symbols[end]) == (0, 3)
        assert symbols[1] == (2 if targets[end, 0] else 1)
        assert all(symbol is not None and symbol > 3 for symbol in symbols[2:end])
        assert symbols[end + 1 :] == [None] * (len(symbols) - end - 1)
        ends.append(int(end))
    assert min(ends) == 32
    assert 39 < sum(ends) / len(ends) < 43  # 32, and nine more on average


def test_sines_are_asked_without_the_noise_that_is_read() -> None:
    drawn = Sines(length=400, sines=2, noise=0.5).draw(np.random.default_rng(3), 200)
    noise = drawn.inputs[:, 1:] - drawn.targets[:, :-1]
    assert abs(noise.std() - 0.5) < 0.01
    assert abs(drawn.targets.var() - 1) < 0.05
    # A sum of two sines satisfies x(t+2) + x(t-2) = a (x(t+1) + x(t-1)) + b x(t).
    x = drawn.targets[0, :, 0]
    left = np.stack([x[3:-1] + x[1:-3], x[2:-2]], axis=1)
    _, residual, _, _ = np.linalg.lstsq(left, x[4:] + x[:-4])
    assert residual[0] < 1e-9


@pytest.mark.parametrize("kind", ["adding", "lag", "mackey-glass"])
def test_series_are_trained_from_any_window_and_published(kind: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f'[run]\ntask = "series"\nthreads = 1\n[corpus]\nkind = "{kind}"\ntrain = 5\nvalidation = 3\n'
        "parameters = { length = 7 }\n[model]\nhidden_size = 5\n[batches]\nrows = 2\nwindow = 4\n"
    )
    assert main([str(recipe), "--output", str(tmp_path / "whole"), "schedule.epochs=2"]) == 0
    task = TASKS["series"].open(load_recipe(recipe), None)
    first, again = [list(task.windows(0, start)) for start in (0, 1)]
    assert len(first) == task.windows_per_epoch == len(again) + 1
    assert torch.equal(first[1].inputs, again[0].inputs)
    assert not torch.equal(first[0].inputs, next(task.windows(1, 0)).inputs)
    done = export_checkpoint(tmp_path / "whole", tmp_path / "models", "small")
    manifest = open_bundle(done.bundle).manifest
    assert manifest.step.inputs == ("x",)
    assert manifest.parity is not None
    assert manifest.parity.row_independent


def test_series_parameter_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^corpus: parameters\.tau is not a key; adding has length$"):
        load_recipe(RECIPES / "adding.toml", ["corpus.parameters={tau=3}"])
    with pytest.raises(RecipeError, match=r"batches\.rows, 20000, so it should be at least that"):
        TASKS["series"].open(load_recipe(RECIPES / "adding.toml", ["batches.rows=20000"]), None)
