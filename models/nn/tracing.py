"""Deep knowledge tracing: P(correct) of a learner's next attempt at every skill, after each attempt.

Axes: B batch rows, T steps, S skills, E embedding, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.nn.config import NetworkConfig, StackShape
from carousel.models.nn.dropout import sequence_dropout
from carousel.models.nn.network import NETWORKS, Network, StepModule
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState
from carousel.models.strict import Count, Probability


class TracingModelShape(StackShape):
    """What a recipe says of a tracing model."""

    embedding_size: Count = 100
    hidden_size: Count = 200
    layers: Count = 1
    shared: bool = False
    """Skills learn only how they differ from what all share; for many skills and few learners."""
    attempt_dropout: Probability = 0.0
    """How often an attempt goes unread: its input is zero, for that step alone."""


class TracingModelConfig(TracingModelShape, NetworkConfig):
    """The shape of a tracing model and its regularisation."""

    skill_count: Count


@NETWORKS.register("tracing")
class TracingModel(Network):
    """DKT (Piech et al. 2015, arXiv:1506.05908): embedding of interactions, recurrent stack, one output per skill.

    An interaction is (skill, correct), id `2 * skill + correct`. A learnt embedding of the 2 S of them stands where
    the paper has a one-hot vector or its random projection: the first product of the recurrent layer is then a sum of
    E columns instead of 2 S.

    With `config.shared`, a skill learns only how it differs from what all skills have in common:

        embedding of (s, correct) = own[s, correct] + answer[correct],  logit of s = (own[s] + readout) h + bias[s]

    Otherwise each must find out for itself what a right answer means, for which a corpus of many skills and few
    learners has too few answers. `fold` makes of it the network without, which is what is served.
    """

    Config = TracingModelConfig
    config: TracingModelConfig
    embedding: nn.Embedding

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
            self.config = self.config.model_copy(update={"shared": False})

    def served(self, logits: Tensor) -> Tensor:
        """P(correct)."""
        return torch.sigmoid(logits)

    def step_module(self) -> StepModule:
        """See Network."""
        return TracingStep(self, {"skill": self.config.skill_count, "correct": 2}, "probability")


class TracingStep(StepModule):
    """One step of a TracingModel."""

    def forward(self, skill: Tensor, correct: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Take in one attempt.

        Args:
            skill: what was tried, in [0, S). <int64>[B]
            correct: 1 where the answer was right, else 0. <int64>[B]
            state: what the previous step left, by name (`h0`, `c0`, ...). [B, ...] each

        Returns:
            P(correct) of the next attempt at each skill <float32>[B, S], and the state after this one, in the order
            of `state_shapes`.
        """
        y, after = self.stack(self.embedding(2 * skill + correct), state)  # [B, H]
        return torch.sigmoid(self.projection(y)), after
