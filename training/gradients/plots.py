"""The pictures: gradients by lag, gates, activations, and the loss around the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch

from carousel.training.gradients.cliff import Surface
from carousel.training.gradients.matrices import ACTIVATIONS, Spectrum
from carousel.training.gradients.trace import Reach
from carousel.training.gradients.verdict import shares

DOTS = 110
"""To an inch."""


def plot_reach(path: Path, reach: Reach, spectra: Sequence[Sequence[Spectrum]], title: str) -> None:
    """Norms of dE/ds(t - d), their shares, products of Jacobians with their bound, and what gates let through."""
    figure, ((norms, share), (products, gates)) = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    figure.suptitle(title)
    for name, values in reach.norms.items():
        norms.semilogy([value or float("nan") for value in values], label=rf"$\partial E/\partial {name[0]}$, {name}")
        share.plot(torch.tensor(shares(values)).cumsum(0).tolist(), label=name)
    norms.set(title="Norm of the last error's gradient", xlabel="lag d in steps")
    share.set(title="Share of it within the last d steps", xlabel="lag d in steps", ylim=(0, 1.02))
    for depth, values in enumerate(reach.jacobians):
        lags = range(1, len(values) + 1)
        (line,) = products.semilogy(lags, [value or float("nan") for value in values], label=f"layer {depth}")
        if len(spectra[depth]) == 1:
            bound = spectra[depth][0].bound
            label = rf"$(\gamma_W\gamma_g)^d$, $\gamma_W\gamma_g$ = {bound:.3f}"
            products.semilogy(lags, [bound**lag for lag in lags], ":", color=line.get_color(), label=label)
    for depth, values in enumerate(reach.carries):
        if values:
            label = f"layer {depth}: gates' product, mean over units"
            products.semilogy(range(1, len(values) + 1), [max(value, 1e-30) for value in values], "--", label=label)
    products.set(title="Largest singular value of the Jacobian's products", xlabel="lag d in steps")
    openings = {
        f"{name} {depth}": opening.flatten(0, 1).mean(0).sort().values.tolist()
        for depth, layer in enumerate(reach.gates)
        for name, opening in layer.items()
    }
    for name, values in openings.items():
        gates.plot(values, label=name)
    gates.set(title="Mean opening of each gate", xlabel="units, sorted", ylim=(0, 1))
    if not openings:
        gates.text(0.5, 0.5, "no gates", ha="center", transform=gates.transAxes)
    for axes in (norms, share, products, gates):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)


def plot_activations(path: Path) -> None:
    """Each activation with its derivative, and the bound of that."""
    figure, row = plt.subplots(1, len(ACTIVATIONS), figsize=(14, 3.6), layout="constrained")
    x = torch.linspace(-5, 5, 401)
    for axes, (name, activation) in zip(row, ACTIVATIONS.items(), strict=True):
        axes.plot(x, activation.value(x), label=name)
        axes.plot(x, activation.slope(x), label="derivative")
        axes.axhline(activation.bound, linestyle=":", color="gray", label=rf"$\gamma_g$ = {activation.bound:g}")
        axes.set(title=name, ylim=(-1.2, 1.7))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)


def plot_cliff(path: Path, surface: Surface, title: str) -> None:
    """The loss over the plane, and one step from its middle with and without clipping."""
    figure, (plane, line) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    along, side = surface.along.tolist(), float(surface.along[-1])
    drawn = plane.contourf(along, along, surface.losses.t(), 24, cmap="viridis")
    figure.colorbar(drawn, ax=plane, label="loss")
    line.plot(along, surface.losses[:, len(along) // 2], color="black", label="loss along the gradient")
    for (x, loss), name, mark in ((surface.plain, "unclipped", "X"), (surface.clipped, "clipped", "o")):
        shown = max(-side, min(side, x))
        label = f"{name}: {x:.3g}, loss {loss:.4g}" + ("" if shown == x else " (beyond the picture)")
        plane.plot(shown, 0, mark, markersize=10, markeredgecolor="white", label=label)
        line.plot(shown, loss, mark, markersize=10, label=label)
    plane.plot(0, 0, "+", color="white", markersize=12)
    plane.set(title="The loss around the weights", xlabel="against the gradient", ylabel="aside, at random")
    line.set(title=f"One gradient step; the gradient's norm is {surface.gradient:.3g}", xlabel="against the gradient")
    line.grid(alpha=0.3)
    for axes in (plane, line):
        axes.legend(loc="lower left" if axes is plane else "best")
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)
