"""Networks over series of real numbers.

Axes: B batch rows, T steps, I numbers read at a step, O numbers said, H hidden.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from carousel.models.graph import TensorSpec
from carousel.models.nn.config import NetworkConfig, StackShape
from carousel.models.nn.dropout import sequence_dropout
from carousel.models.nn.network import NETWORKS, Fed, Network, StepModule
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState
from carousel.models.strict import Count


class SeriesModelShape(StackShape):
    """What a recipe says of a network over series."""

    hidden_size: Count = 128
    layers: Count = 1


class SeriesModelConfig(SeriesModelShape, NetworkConfig):
    """The shape of a network over series."""

    inputs: Count
    """I"""
    outputs: Count
    """O"""
    output: Literal["value", "probability"] = "value"
    """Numbers as they are; or probabilities, each of its own."""


@NETWORKS.register("series")
class SeriesModel(Network):
    """A recurrent stack that reads numbers as they are, and a projection to the numbers that it says."""

    Config = SeriesModelConfig
    config: SeriesModelConfig

    def __init__(self, config: SeriesModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Identity()
        self.input_dropout = sequence_dropout(config.input_dropout, config.locked)
        self.stack = RecurrentStack(
            config.cell,
            config.inputs,
            [config.hidden_size] * config.layers,
            hidden_dropout=config.hidden_dropout,
            output_dropout=config.output_dropout,
            weight_drop=config.weight_drop,
            locked=config.locked,
        )
        self.projection = nn.Linear(config.hidden_size, config.outputs)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Run T steps.

        Args:
            x: <float32>[B, T, I]
            state: what the previous call left; zeros at a series' start. [B, ...] each

        Returns:
            What is said after each step, logits where probabilities are served <float32>[B, T, O], and the state after
            step T.

        Raises:
            ShapeMismatch: the state is not this model's, or its batch differs from that of x.
        """
        y, after = self.stack(self.input_dropout(x.transpose(0, 1)).transpose(0, 1), state)  # [B, T, H]
        return self.projection(y), after

    def served(self, logits: Tensor) -> Tensor:
        """See Network."""
        return torch.sigmoid(logits) if self.config.output == "probability" else logits

    def step_module(self) -> StepModule:
        """See Network."""
        return SeriesStep(self)


class SeriesStep(StepModule):
    """One step of a SeriesModel."""

    def __init__(self, network: SeriesModel) -> None:
        super().__init__(network, {}, network.config.output)
        self._features = network.config.inputs

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """See StepModule."""
        return {"x": TensorSpec("x", "float32", (None, self._features))}

    def drawn(self, shape: tuple[int, ...], seed: int) -> Fed:
        """See StepModule."""
        return np.random.default_rng(seed).standard_normal((*shape, self._features), np.float32)

    def split(self, ids: Fed) -> dict[str, Fed]:
        """See StepModule: one input reads it all."""
        return {"x": ids}

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Make one step. x <float32>[B, I] -> what is said <float32>[B, O], and the states in order."""
        y, after = self.stack(x, state)  # [B, H]
        said = self.projection(y)
        return torch.sigmoid(said) if self.output == "probability" else said, after
