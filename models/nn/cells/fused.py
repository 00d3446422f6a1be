"""Cells that torch has a kernel for: many steps in one call.

Axes: B batch rows, T steps, E input features, H hidden units, G gates.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from carousel.models.nn.cells.cell import Cell, States


class FusedCell(Cell):
    """A cell whose parameters are those of a torch kernel of one layer, `rnn`."""

    kernel: ClassVar[type[nn.LSTM | nn.GRU | nn.RNN]]
    recurrent = ("rnn.weight_hh_l0",)

    def __init__(self, input_size: int, hidden_size: int, weight_drop: float = 0.0) -> None:
        super().__init__(input_size, hidden_size, weight_drop)
        self.rnn = self.kernel(input_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal recurrent weights, gate by gate; no bias."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.matrices()
        nn.init.xavier_uniform_(weight_ih)
        for gate in torch.split(weight_hh.data, self.hidden_size):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)

    def matrices(self, weights: dict[str, Tensor] | None = None) -> list[Tensor]:
        """W_ih <float>[GH, E], W_hh <float>[GH, H], and a bias <float>[GH] of each; of `weights`, or the cell's own."""
        weights = dict(self.named_parameters()) if weights is None else weights
        return [weights[f"rnn.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    @abstractmethod
    def one(self, x: Tensor, state: States, matrices: list[Tensor]) -> States:
        """The states after one step, what it puts out first. x <float>[B, E], states <float>[B, H]"""

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """See Cell.

        One step goes without the kernel, which packs the weights anew at every call and keeps an LSTM's c in bfloat16.
        """
        weights = self.weights()
        if len(x) == 1:
            after = self.one(x[0], state, self.matrices(weights))
            return after[0][None], after  # [1, B, H]
        states = tuple(part.unsqueeze(0) for part in state)  # [1, B, H]
        before = states if len(states) > 1 else states[0]
        if self.training and self.weight_drop > 0:
            dropped = {name.removeprefix("rnn."): weight for name, weight in weights.items()}
            y, left = functional_call(self.rnn, dropped, (x, before))
        else:
            y, left = self.rnn(x, before)
        return y, tuple(part.squeeze(0) for part in (left if len(states) > 1 else (left,)))  # [B, H]


class OneProduct(nn.Module):
    """[W_ih W_hh] [x; h] + b: a step whose gates may be summed before they open takes one product.

    Args:
        cell: whose weights are laid out anew.
    """

    def __init__(self, cell: FusedCell) -> None:
        super().__init__()
        weight_ih, weight_hh, bias_ih, bias_hh = cell.matrices()
        self.weight = nn.Parameter(torch.cat([weight_ih, weight_hh], dim=1))  # [GH, E + H]
        self.bias = nn.Parameter(bias_ih + bias_hh)  # [GH]

    def gates(self, x: Tensor, h: Tensor) -> Tensor:
        """<float32>[B, E], [B, H] -> [B, GH]"""
        return nn.functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias)
