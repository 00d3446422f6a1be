"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

Axes: B batch rows, E input features, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.nn.cells.cell import CELLS, States
from carousel.models.nn.cells.fused import FusedCell, OneProduct


@CELLS.register("lstm")
class LSTM(FusedCell):
    """
    i, f, g, o = split(W_ih x + W_hh h + b),  i, f, o through sigmoid, g through tanh
    c' = f * c + i * g
    h' = o * tanh(c')
    """

    states = ("h", "c")
    kernel = nn.LSTM
    carry_gate = "forget"

    def reset_parameters(self) -> None:
        """The forget gate starts open (bias 1, Jozefowicz et al. 2015)."""
        super().reset_parameters()
        _, _, bias, _ = self.matrices()
        nn.init.ones_(bias.data[self.hidden_size : 2 * self.hidden_size])

    def one(self, x: Tensor, state: States, matrices: list[Tensor]) -> States:
        """See FusedCell."""
        return torch.lstm_cell(x, state, *matrices)

    def gates(self, x: Tensor, state: States) -> dict[str, Tensor]:
        """See Cell."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.matrices()
        sums = functional.linear(x, weight_ih, bias_ih) + functional.linear(state[0], weight_hh, bias_hh)
        i, f, _, o = torch.sigmoid(sums).chunk(4, dim=1)
        return {"input": i, "forget": f, "output": o}

    def step(self) -> nn.Module:
        """See Cell."""
        return StepLSTM(self)


class StepLSTM(OneProduct):
    """One step of an LSTM."""

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """See Cell.step."""
        h, c = state
        i, f, g, o = self.gates(x, h).chunk(4, dim=1)  # [B, H] each
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)
