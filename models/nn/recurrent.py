"""Stacks of recurrent layers whose state is explicit: it comes in, it goes out, nothing is remembered inside.

Axes: B batch rows, T steps, E input features, H hidden units.

A state is a dict from name to tensor, one entry per layer and state of its cell: `h0`, `c0`, `h1`, ... each
<float32>[B, ...]. Names, not positions, pair what comes out with what goes in: an LSTM's h and c have equal shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from carousel.models.errors import ShapeMismatch
from carousel.models.nn.cells.cell import CELLS, Cell
from carousel.models.nn.dropout import sequence_dropout

RecurrentState = dict[str, Tensor]


class RecurrentStack(nn.Module):
    """Recurrent layers on top of one another, with dropout between them and after the last.

    Args:
        cell: its name in CELLS.
        input_size: E.
        hidden_sizes: H of each layer, from the input on.
        hidden_dropout: between layers.
        output_dropout: after the last layer.
        weight_drop: on every layer's recurrent matrix.
        locked: one dropout mask for all steps instead of one per step.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_sizes: Sequence[int],
        *,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_drop: float = 0.0,
        locked: bool = True,
    ) -> None:
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        self.cell = cell
        self.layers = nn.ModuleList(
            CELLS[cell](below, size, weight_drop) for below, size in zip(sizes, hidden_sizes, strict=False)
        )
        last = len(hidden_sizes) - 1
        self.dropouts = nn.ModuleList(
            sequence_dropout(output_dropout if depth == last else hidden_dropout, locked) for depth in range(last + 1)
        )

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The name of every state and a row's shape of it, in the order of layers: {"h0": (H,), "c0": (H,), ...}."""
        return {
            f"{name}{depth}": shape
            for depth, cell in enumerate(self.cells())
            for name, shape in cell.state_shapes.items()
        }

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros, as at a sequence's start. <float32>[batch, ...] each"""
        device = next(self.parameters()).device
        return {name: torch.zeros(batch, *shape, device=device) for name, shape in self.state_shapes.items()}

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Run T steps.

        Args:
            x: <float32>[B, T, E]
            state: what the previous call left. <float32>[B, H] each

        Returns:
            The last layer's outputs <float32>[B, T, H], and the state after step T.

        Raises:
            ShapeMismatch: the state's names or shapes are not those of this stack and batch.
        """
        self._check(state, x.shape[0])
        after: RecurrentState = {}
        y = x.transpose(0, 1)  # [T, B, E]
        for depth, (cell, dropout) in enumerate(zip(self.cells(), self.dropouts, strict=True)):
            names = [f"{name}{depth}" for name in cell.states]
            y, states = cell(y, tuple(state[name] for name in names))  # [T, B, H]
            after |= dict(zip(names, states, strict=True))
            y = dropout(y)
        return y.transpose(0, 1), after  # [B, T, H]

    def _check(self, state: RecurrentState, batch: int) -> None:
        allowed = {name: (batch, *shape) for name, shape in self.state_shapes.items()}
        seen = {name: tuple(part.shape) for name, part in state.items()}
        if seen != allowed:
            raise ShapeMismatch(f"state is {seen}; this stack with {batch} rows takes {allowed}")

    def cells(self) -> list[Cell]:
        """The layers, from the input on (a ModuleList has no element type)."""
        return [layer for layer in self.layers if isinstance(layer, Cell)]

    def step(self) -> StepStack:
        """One step of it, as it is served."""
        return StepStack(self.cells())


class StepStack(nn.Module):
    """One step of a RecurrentStack: no dropout, and none of its shape checks.

    Args:
        cells: its layers, whose weights are laid out anew.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.state_kinds = [cell.states for cell in cells]
        self.layers = nn.ModuleList(cell.step() for cell in cells)

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Make one step. x <float32>[B, E], states [B, ...] each -> the last layer's output, and the states after."""
        after: RecurrentState = {}
        for depth, (layer, kinds) in enumerate(zip(self.layers, self.state_kinds, strict=True)):
            names = [f"{kind}{depth}" for kind in kinds]
            x, states = layer(x, tuple(state[name] for name in names))  # [B, H]
            after |= dict(zip(names, states, strict=True))
        return x, after


def detach(state: RecurrentState) -> RecurrentState:
    """The same values without their history, as float32: where truncated backpropagation cuts."""
    return {name: part.detach().float() for name, part in state.items()}
