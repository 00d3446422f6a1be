"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product as in cuDNN).

Axes: B batch rows, E input features, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.nn.cells.cell import CELLS, States
from carousel.models.nn.cells.fused import FusedCell


@CELLS.register("gru")
class GRU(FusedCell):
    """
    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr),  z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h
    """

    states = ("h",)
    kernel = nn.GRU
    carry_gate = "update"

    def one(self, x: Tensor, state: States, matrices: list[Tensor]) -> States:
        """See FusedCell."""
        return (torch.gru_cell(x, *state, *matrices),)

    def gates(self, x: Tensor, state: States) -> dict[str, Tensor]:
        """See Cell. An update gate that is open keeps."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.matrices()
        sums = functional.linear(x, weight_ih, bias_ih) + functional.linear(state[0], weight_hh, bias_hh)
        r, z, _ = torch.sigmoid(sums).chunk(3, dim=1)
        return {"reset": r, "update": z}

    def step(self) -> nn.Module:
        """See Cell."""
        return StepGRU(self)


class StepGRU(nn.Module):
    """One step of a GRU. Two products, because the reset gate multiplies the hidden one before they are summed."""

    def __init__(self, cell: GRU) -> None:
        super().__init__()
        weight_ih, weight_hh, bias_ih, bias_hh = cell.matrices()
        self.input_weight = nn.Parameter(weight_ih.clone())  # [3H, E]
        self.input_bias = nn.Parameter(bias_ih.clone())  # [3H]
        self.hidden_weight = nn.Parameter(weight_hh.clone())  # [3H, H]
        self.hidden_bias = nn.Parameter(bias_hh.clone())  # [3H]

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """See Cell.step."""
        (h,) = state
        from_input = functional.linear(x, self.input_weight, self.input_bias).chunk(3, dim=1)  # [B, H] each
        from_hidden = functional.linear(h, self.hidden_weight, self.hidden_bias).chunk(3, dim=1)  # [B, H] each
        r = torch.sigmoid(from_input[0] + from_hidden[0])
        z = torch.sigmoid(from_input[1] + from_hidden[1])
        n = torch.tanh(from_input[2] + r * from_hidden[2])
        h = n + z * (h - n)  # (1 - z) n + z h with one operation less
        return h, (h,)
