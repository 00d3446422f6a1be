"""How far errors reach: against chains of Jacobians by hand, finite differences, and what cells compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from carousel.models.nn.cells.cell import CELLS
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.training.__main__ import main as train
from carousel.training.gradients.__main__ import main
from carousel.training.gradients.cliff import surface
from carousel.training.gradients.matrices import ACTIVATIONS, spectra
from carousel.training.gradients.trace import jacobian, reach
from carousel.training.gradients.verdict import shares, verdict
from carousel.training.recipe import load_recipe
from carousel.training.task import TASKS
from carousel.training.trainer import BEST

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SMALL = ["corpus.train=6", "corpus.validation=3", "corpus.parameters={length=9}", "batches.rows=3"]


def small_task(cell: str, *overrides: str):
    recipe = load_recipe(RECIPES / "adding.toml", [*SMALL, f"model.cell={cell}", "model.hidden_size=5", *overrides])
    torch.manual_seed(3)
    return TASKS["series"].open(recipe, None)


def test_reach_of_elman_is_the_chain_of_its_jacobians() -> None:
    task = small_task("elman")
    window = next(task.windows(0, 0))
    found = reach(task, window, 5)
    weight_ih, weight_hh, *biases = task.module.stack.cells()[0].matrices()
    h, states = torch.zeros(3, 5), []
    for x in window.inputs.unbind(1):
        h = torch.tanh(x @ weight_ih.T + h @ weight_hh.T + sum(biases))
        states.append(h)
    said = task.module.projection(h)
    error = 2 * (said - window.targets[:, -1]) / 3 @ task.module.projection.weight  # dE/dh(T) [B, H]
    for lag, norm in enumerate(found.norms["h0"]):
        assert norm == pytest.approx(error.norm(dim=1).mean().item(), rel=1e-4)
        error = (error * (1 - states[-1 - lag] ** 2)) @ weight_hh
    product = torch.eye(5)
    for lag, norm in enumerate(found.jacobians[0]):
        product = product @ torch.diag(1 - states[-1 - lag][0] ** 2) @ weight_hh
        assert norm == pytest.approx(torch.linalg.svdvals(product)[0].item(), rel=1e-4)


@pytest.mark.parametrize("name", list(CELLS))
def test_jacobian_of_every_cell_is_that_of_finite_differences(name: str) -> None:
    torch.manual_seed(1)
    cell = CELLS[name](3, 4).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    before = tuple(0.3 * torch.randn(1, *shape, dtype=torch.float64) for shape in cell.state_shapes.values())
    seen = jacobian(cell, x, before)
    flat = torch.cat([part.flatten() for part in before])

    def after(entries):
        parts = [
            part.reshape(old.shape)
            for part, old in zip(entries.split([old.numel() for old in before]), before, strict=True)
        ]
        return torch.cat([part.flatten() for part in cell(x[None], tuple(parts))[1]])

    step = 1e-6
    for column in range(len(flat)):
        moved = torch.zeros_like(flat)
        moved[column] = step
        expected = (after(flat + moved) - after(flat - moved)) / (2 * step)
        torch.testing.assert_close(seen[:, column], expected, rtol=1e-5, atol=1e-7)


def test_gates_are_those_that_the_states_went_through() -> None:
    for name in ("lstm", "gru"):
        torch.manual_seed(1)
        cell, x = CELLS[name](3, 4), torch.randn(2, 3)
        before = tuple(torch.randn(2, 4) for _ in cell.states)
        gates, (_, after) = cell.gates(x, before), cell(x[None], before)
        weight_ih, weight_hh, bias_ih, bias_hh = cell.matrices()
        own, old = x @ weight_ih.T + bias_ih, before[0] @ weight_hh.T + bias_hh
        if name == "lstm":
            new = torch.tanh((own + old)[:, 8:12])
            torch.testing.assert_close(after[1], gates["forget"] * before[1] + gates["input"] * new)
            torch.testing.assert_close(after[0], gates["output"] * torch.tanh(after[1]))
        else:
            new = torch.tanh(own[:, 8:] + gates["reset"] * old[:, 8:])
            torch.testing.assert_close(after[0], (1 - gates["update"]) * new + gates["update"] * before[0])


def test_reach_tells_all_layers_and_gates_and_leaves_the_network_as_it_was() -> None:
    task = small_task("lstm", "model.layers=2", "model.hidden_dropout=0.5")
    weights = [parameter.clone() for parameter in task.module.parameters()]
    task.module.train()
    random, stack = torch.get_rng_state(), task.module.stack.cells()
    found = reach(task, next(task.windows(0, 0)))
    surface(task, next(task.windows(0, 0)), 0.1, 1.0, points=3)
    assert {name: len(norms) for name, norms in found.norms.items()} == dict.fromkeys(("h0", "c0", "h1", "c1"), 9)
    assert [set(gates) for gates in found.gates] == [{"input", "forget", "output"}] * 2
    forget = found.gates[1]["forget"]
    assert found.carries[1][2] == pytest.approx((forget[-1] * forget[-2] * forget[-3]).mean().item())
    assert torch.equal(random, torch.get_rng_state())
    assert task.module.training
    assert task.module.stack.cells() == stack
    assert all(parameter.grad is None for parameter in task.module.parameters())
    assert all(map(torch.equal, weights, task.module.parameters()))


def test_clipped_step_is_as_long_as_the_clip() -> None:
    task = small_task("elman")
    found = surface(task, next(task.windows(0, 0)), 0.5, 1e-3, points=3)
    assert found.plain[0] == pytest.approx(0.5 * found.gradient)
    assert found.clipped[0] == pytest.approx(0.5e-3)
    assert found.clipped[1] == pytest.approx(found.losses[1, 1].item() - 0.5e-3 * found.gradient, abs=1e-6)


def test_spectrum_tells_singular_values_from_eigenvalues() -> None:
    cell = CELLS["elman"](2, 2)
    cell.matrices()[1].data.copy_(torch.tensor([[0.5, 3.0], [0.0, 0.25]]))
    (seen,) = spectra(cell)
    assert seen.radius == pytest.approx(0.5)
    assert seen.singular == pytest.approx(3.0512, abs=1e-3)
    assert len(spectra(CELLS["lstm"](2, 3))) == 4


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_slope_of_an_activation_is_its_derivative_and_bounded(name: str) -> None:
    x = torch.linspace(-4, 4, 900, dtype=torch.float64, requires_grad=True)
    activation = ACTIVATIONS[name]
    (expected,) = torch.autograd.grad(activation.value(x).sum(), x)
    torch.testing.assert_close(activation.slope(x), expected)
    assert expected.max() <= activation.bound
    assert expected.max() > 0.99 * activation.bound


def test_verdict_says_from_which_lag_on() -> None:
    assert verdict([0.5**lag for lag in range(30)]).startswith("vanishing: from lag 10 on")
    assert verdict([2.0**lag for lag in range(30)]).startswith("exploding: from lag 10 on")
    assert verdict([0.99**lag for lag in range(30)]).startswith("fine: over all 29 steps")
    assert verdict([0.0, 0.0]).startswith("no error reaches")
    assert shares([3.0, 1.0]) == [0.75, 0.25]


def test_command_tells_and_draws(tmp_path: Path, capsys) -> None:
    run = [str(RECIPES / "adding.toml"), *SMALL, "model.hidden_size=4", "schedule.epochs=2"]
    assert train([*run, "--output", str(tmp_path / "plain")]) == 0
    assert train([*run, "run.log_gradients_every=1", "--output", str(tmp_path / "logged")]) == 0
    plain, logged = (read_checkpoint(tmp_path / name / BEST).tensors for name in ("plain", "logged"))
    assert all(torch.equal(value, logged[name]) for name, value in plain.items())
    capsys.readouterr()
    assert main([str(tmp_path / "plain"), "--jacobians", "3"]) == 0
    said = capsys.readouterr().out
    assert "dE/dc0: " in said
    assert "layer 0 forget gate: open 0." in said
    for name in ("gradients.png", "cliff.png", "activations.png"):
        assert (tmp_path / "plain" / name).stat().st_size > 10_000
    assert main([str(tmp_path / "none")]) == 2
    assert "last.safetensors" in capsys.readouterr().err
