"""Recurrent matrices by their spectra, and activations by their slopes: what bounds how far an error reaches.

Axes: H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carousel.models.nn.cells.cell import Cell


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of a unit's sum."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bound: float
    """The largest slope: gamma_g."""


ACTIVATIONS = {
    "tanh": Activation(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, 1.0),
    "sigmoid": Activation(torch.sigmoid, lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)), 0.25),
    "relu": Activation(torch.relu, lambda x: (x > 0).to(x.dtype), 1.0),
    "hard sigmoid": Activation(
        lambda x: (0.2 * x + 0.5).clamp(0, 1), lambda x: 0.2 * ((x > -2.5) & (x < 2.5)).to(x.dtype), 0.2
    ),
}


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Of one square block of a recurrent matrix."""

    name: str
    singular: float
    """The largest singular value: gamma_W."""
    radius: float
    """The largest absolute value of an eigenvalue."""

    @property
    def bound(self) -> float:
        """gamma_W gamma_g of tanh and ReLU units: where below 1, dh(t)/dh(k) of a network without gates is at most its
        power t - k and must vanish; above 1 it may explode, and need not (Pascanu et al. 2013, section 2.1).
        """
        return self.singular * ACTIVATIONS["tanh"].bound


@torch.no_grad()
def spectra(cell: Cell) -> list[Spectrum]:
    """Of each block <float>[H, H] of each matrix that a state is multiplied with: one a gate."""
    found = []
    for name, matrix in ((name, dict(cell.named_parameters())[name]) for name in cell.recurrent):
        size = matrix.shape[-1]
        if matrix.dim() != 2 or matrix.shape[0] % size:
            continue  # a diagonal, or a product of another shape: it has no eigenvalues
        blocks = torch.split(matrix.double().cpu(), size)
        for place, block in enumerate(blocks):
            singular = float(torch.linalg.matrix_norm(block, 2))
            radius = float(torch.linalg.eigvals(block).abs().max())
            found.append(Spectrum(name if len(blocks) == 1 else f"{name}[{place}]", singular, radius))
    return found
