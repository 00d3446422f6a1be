"""How far errors reach back in a trained network: `python -m training.gradients RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from carousel.models.errors import CarouselError
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.threads import limit_threads
from carousel.training.gradients.cliff import surface
from carousel.training.gradients.matrices import spectra
from carousel.training.gradients.plots import plot_activations, plot_cliff, plot_reach
from carousel.training.gradients.trace import reach
from carousel.training.gradients.verdict import shares, verdict
from carousel.training.recipe import saved_recipe
from carousel.training.task import TASKS
from carousel.training.trainer import BEST, LAST

SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Lags that are printed; plots and TensorBoard have all."""


def run(directory: Path, overrides: Sequence[str], jacobian_lags: int) -> None:
    """Diagnose a run's best weights on the first window of its data, print it, and write it beside them."""
    saved, best = read_checkpoint(directory / LAST), read_checkpoint(directory / BEST)
    recipe = saved_recipe(directory.name, saved.header["recipe"], overrides)
    task = TASKS[recipe.run.task].open(recipe, saved)
    task.module.load_state_dict(best.group("model"))
    window = next(iter(task.windows(0, 0)))
    found, cells = reach(task, window, jacobian_lags), task.module.stack.cells()
    matrices = [spectra(cell) for cell in cells]
    for depth, blocks in enumerate(matrices):
        for one in blocks:
            print(f"layer {depth} {one.name}: largest singular value {one.singular:.4f}, radius {one.radius:.4f}")
        if len(blocks) == 1:
            print(f"layer {depth}: (gamma_W gamma_g)^d is {blocks[0].bound:.4f}^d, gamma_g = 1 of tanh and ReLU")
    for name, norms in found.norms.items():
        lags = [lag for lag in SHOWN if lag < len(norms)]
        print(f"dE/d{name}: " + ", ".join(f"{norms[lag]:.2e} at lag {lag}" for lag in lags))
        print(f"  share of the last ten steps: {sum(shares(norms)[:10]):.1%}; {verdict(norms)}")
    for depth, layer in enumerate(found.gates):
        for gate, opening in layer.items():
            print(f"layer {depth} {gate} gate: open {opening.mean():.3f} in the mean")
    with SummaryWriter(directory) as writer:
        for name, norms in found.norms.items():
            for lag, norm in enumerate(norms):
                writer.add_scalar(f"gradients_by_lag/{name}", norm, lag)
    around = surface(task, window, recipe.optimizer.learning_rate, recipe.optimizer.clip_norm)
    title = f"{recipe.name}: {task.module.stack.cell}"
    plot_reach(directory / "gradients.png", found, matrices, title)
    plot_cliff(directory / "cliff.png", around, title)
    plot_activations(directory / "activations.png")
    print(f"plots are {directory}/gradients.png, cliff.png and activations.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 is a mistake of the caller's."""
    parser = argparse.ArgumentParser(prog="python -m training.gradients", description="How far do errors reach back?")
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the recipe")
    parser.add_argument("--jacobians", type=int, default=50, metavar="LAGS", help="over which their products are taken")
    options = parser.parse_intermixed_args(arguments)
    limit_threads()
    try:
        run(options.run, options.overrides, options.jacobians)
    except (CarouselError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
