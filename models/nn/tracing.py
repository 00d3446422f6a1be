"""Deep knowledge tracing: P(correct) of a learner's next attempt at every skill, after each attempt.

Axes: B batch rows, T steps, S skills, E embedding, H hidden.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.errors import CheckpointError
from carousel.models.nn.dropout import sequence_dropout
from carousel.models.nn.recurrent import Cell, RecurrentStack, RecurrentState


@dataclass(frozen=True, slots=True)
class TracingModelConfig:
    """The shape of a tracing model and its regularisation."""

    skill_count: int
    cell: Cell = "lstm"
    embedding_size: int = 100
    hidden_size: int = 200
    layers: int = 1
    shared: bool = False
    locked: bool = True
    attempt_dropout: float = 0.0
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("skill_count", "embedding_size", "hidden_size", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; allowed is 1 or more")
        for name in ("attempt_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; allowed is 0 up to, not including, 1")
        if self.cell not in ("lstm", "gru"):
            raise ValueError(f"model.cell is {self.cell!r}; allowed are 'lstm' and 'gru'")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TracingModelConfig:
        """The inverse of to_json.

        Raises:
            CheckpointError: an unknown key or a value out of range.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise CheckpointError(f"model configuration has unknown keys {sorted(unknown)}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"model configuration: {error}") from None


class TracingModel(nn.Module):
    """DKT (Piech et al. 2015, arXiv:1506.05908): embedding of interactions, recurrent stack, one output per skill.

    An interaction is (skill, correct), id `2 * skill + correct`. A learnt embedding of the 2 S of them stands where
    the paper has a one-hot vector or its random projection: the first product of the recurrent layer is then a sum of
    E columns instead of 2 S.

    With `config.shared`, a skill learns only how it differs from what all skills have in common:

        embedding of (s, correct) = own[s, correct] + answer[correct],  logit of s = (own[s] + readout) h + bias[s]

    Otherwise each must find out for itself what a right answer means, for which a corpus of many skills and few
    learners has too few answers. `fold` makes of it the network without, which is what is served.
    """

    def __init__(self, config: TracingModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(2 * config.skill_count, config.embedding_size)
        self.input_dropout = sequence_dropout(config.input_dropout, config.locked)
        self.stack = RecurrentStack(
            config.cell,
            config.embedding_size,
            [config.hidden_size] * config.layers,
            hidden_dropout=config.hidden_dropout,
            output_dropout=config.output_dropout,
            weight_drop=config.weight_drop,
            locked=config.locked,
        )
        self.projection = nn.Linear(config.hidden_size, config.skill_count)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.projection.bias)
        if config.shared:
            # Small, so that what is shared leads; not zero, or all hidden units would begin by learning the same.
            nn.init.uniform_(self.projection.weight, -0.02, 0.02)
            self.answer = nn.Parameter(0.1 * torch.randn(2, config.embedding_size))
            self.readout = nn.Parameter(torch.zeros(1, config.hidden_size))

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros: a learner of whom nothing is known. <float32>[batch, H] each"""
        return self.stack.initial_state(batch)

    def forward(self, ids: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Take in T attempts and return, after each, the logit of P(correct) of the next attempt at every skill.

        Args:
            ids: interactions, each in [0, 2 S). <int64>[B, T]
            state: what the previous call left; zeros before a learner's first attempt. <float32>[B, H] each

        Returns:
            Logits <float32>[B, T, S], to go through a sigmoid, and the state after attempt T.

        Raises:
            ShapeMismatch: the state is not this model's, or its batch differs from that of ids.
        """
        # Time-major in memory, as the recurrent kernels want it; the [B, T] views of it cost nothing.
        x = functional.embedding(ids.t(), self.embedding.weight)  # [T, B, E]
        weight = self.projection.weight  # [S, H]
        if self.config.shared:
            x = x + functional.embedding(ids.t() & 1, self.answer)
            weight = weight + self.readout
        x = self.input_dropout(x)
        if self.training and self.config.attempt_dropout > 0:
            x = x * (torch.rand(*x.shape[:2], 1, device=x.device) >= self.config.attempt_dropout)
        y, after = self.stack(x.transpose(0, 1), state)  # [B, T, H]
        logits = functional.linear(y.transpose(0, 1), weight, self.projection.bias)  # [T, B, S]
        return logits.transpose(0, 1), after  # [B, T, S]

    @torch.no_grad()
    def fold(self) -> None:
        """Add what skills share to each skill's own, in place: the same function, as plain tables."""
        if self.config.shared:
            self.embedding.weight += self.answer.repeat(self.config.skill_count, 1)  # [2 S, E]
            self.projection.weight += self.readout
            del self.answer, self.readout
            self.config = replace(self.config, shared=False)

    @property
    def parameter_count(self) -> int:
        """The number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())
