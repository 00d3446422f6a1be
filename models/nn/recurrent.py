"""Stacks of recurrent layers whose state is explicit: it comes in, it goes out, nothing is remembered inside.

Axes: B batch rows, T steps, E input features, H hidden units.

A state is a dict from name to tensor, one entry per layer and kind: `h0`, `c0`, `h1`, ... each <float32>[B, H].
Names, not positions, pair what comes out with what goes in: an LSTM's h and c have equal shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from carousel.models.errors import ShapeMismatch
from carousel.models.nn.dropout import drop_weight, sequence_dropout

Cell = Literal["lstm", "gru"]
RecurrentState = dict[str, Tensor]


class RecurrentLayer(nn.Module):
    """One LSTM or GRU layer.

    LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000):
        i, f, g, o = split(W_ih x + W_hh h + b),  i, f, o through sigmoid, g through tanh
        c' = f * c + i * g
        h' = o * tanh(c')
    GRU (Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product as in cuDNN):
        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr),  z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        cell: "lstm" or "gru".
        input_size: E.
        hidden_size: H.
        weight_drop: probability of dropping an entry of W_hh for a window.
    """

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.cell = cell
        self.hidden_size = hidden_size
        self.weight_drop = weight_drop
        self.rnn: nn.RNNBase = nn.LSTM(input_size, hidden_size) if cell == "lstm" else nn.GRU(input_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal recurrent weights; an LSTM's forget gate starts open (bias 1, Jozefowicz et al. 2015)."""
        hidden = self.hidden_size
        weights = self._weights()
        nn.init.xavier_uniform_(weights["weight_ih_l0"])
        for gate in torch.split(weights["weight_hh_l0"].data, hidden):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])
        if self.cell == "lstm":
            nn.init.ones_(weights["bias_ih_l0"].data[hidden : 2 * hidden])

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.rnn.named_parameters())

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """What the layer remembers: h and c, or h alone."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run T steps. x <float>[T, B, E], each state <float>[B, H] -> <float>[T, B, H] and the state after step T."""
        dropped = self.training and self.weight_drop > 0
        weights = self._weights()
        if dropped:
            weights["weight_hh_l0"] = drop_weight(weights["weight_hh_l0"], self.weight_drop, training=True)
        if len(x) == 1:
            return self._step(x[0], state, weights)
        states = tuple(part.unsqueeze(0) for part in state)  # [1, B, H]
        before = states if self.cell == "lstm" else states[0]
        y, after = functional_call(self.rnn, weights, (x, before)) if dropped else self.rnn(x, before)
        after = after if self.cell == "lstm" else (after,)
        return y, tuple(part.squeeze(0) for part in after)  # [B, H]

    def _step(
        self, x: Tensor, state: tuple[Tensor, ...], weights: dict[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step without the fused kernel, which packs the weights anew at every call and keeps c in bfloat16."""
        matrices = [weights[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        after = torch.lstm_cell(x, state, *matrices) if self.cell == "lstm" else (torch.gru_cell(x, *state, *matrices),)
        return after[0][None], after  # [1, B, H]


class RecurrentStack(nn.Module):
    """Recurrent layers on top of one another, with dropout between them and after the last.

    Args:
        cell: "lstm" or "gru".
        input_size: E.
        hidden_sizes: H of each layer, from the input on.
        hidden_dropout: between layers.
        output_dropout: after the last layer.
        weight_drop: on every layer's recurrent matrix.
        locked: one dropout mask for all steps instead of one per step.
    """

    def __init__(
        self,
        cell: Cell,
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
            RecurrentLayer(cell, below, size, weight_drop) for below, size in zip(sizes, hidden_sizes, strict=False)
        )
        last = len(hidden_sizes) - 1
        self.dropouts = nn.ModuleList(
            sequence_dropout(output_dropout if depth == last else hidden_dropout, locked) for depth in range(last + 1)
        )

    @property
    def state_sizes(self) -> dict[str, int]:
        """The name and H of every state, in the order of layers: {"h0": H, "c0": H, "h1": H, ...}."""
        return {
            f"{kind}{depth}": layer.hidden_size
            for depth, layer in enumerate(self.typed_layers())
            for kind in layer.state_kinds
        }

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros, as at a sequence's start. <float32>[batch, H] each"""
        device = next(self.parameters()).device
        return {name: torch.zeros(batch, size, device=device) for name, size in self.state_sizes.items()}

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
        for depth, (layer, dropout) in enumerate(zip(self.typed_layers(), self.dropouts, strict=True)):
            y, states = layer(y, tuple(state[f"{kind}{depth}"] for kind in layer.state_kinds))  # [T, B, H]
            after |= {f"{kind}{depth}": part for kind, part in zip(layer.state_kinds, states, strict=True)}
            y = dropout(y)
        return y.transpose(0, 1), after  # [B, T, H]

    def _check(self, state: RecurrentState, batch: int) -> None:
        allowed = {name: (batch, size) for name, size in self.state_sizes.items()}
        seen = {name: tuple(part.shape) for name, part in state.items()}
        if seen != allowed:
            raise ShapeMismatch(f"state is {seen}; this stack with {batch} rows takes {allowed}")

    def typed_layers(self) -> list[RecurrentLayer]:
        """The layers, from the input on (a ModuleList has no element type)."""
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]


def detach(state: RecurrentState) -> RecurrentState:
    """The same values without their history, as float32: where truncated backpropagation cuts."""
    return {name: part.detach().float() for name, part in state.items()}
