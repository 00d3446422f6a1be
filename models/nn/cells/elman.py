"""The simple recurrent network (Elman 1990).

Axes: B batch rows, E input features, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carousel.models.nn.cells.cell import CELLS, States
from carousel.models.nn.cells.fused import FusedCell, OneProduct


@CELLS.register("elman")
class Elman(FusedCell):
    """
    h' = tanh(W_ih x + W_hh h + b)
    """

    states = ("h",)
    kernel = nn.RNN

    def one(self, x: Tensor, state: States, matrices: list[Tensor]) -> States:
        """See FusedCell."""
        return (torch.rnn_tanh_cell(x, *state, *matrices),)

    def step(self) -> nn.Module:
        """See Cell. A product and a tanh: a row of the RNN operator depends on its neighbours at a batch of one."""
        return StepElman(self)


class StepElman(OneProduct):
    """One step of an Elman network."""

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """See Cell.step."""
        h = torch.tanh(self.gates(x, *state))
        return h, (h,)
