"""Recurrent language models: the next token's logits after each token.

Axes: B batch rows, T steps, V vocabulary, E embedding, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.nn.config import NetworkConfig, StackShape
from carousel.models.nn.dropout import drop_words, sequence_dropout
from carousel.models.nn.network import NETWORKS, Network, StepModule
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState
from carousel.models.strict import Count, Probability


class LanguageModelShape(StackShape):
    """What a recipe says of a language model."""

    embedding_size: Count = 512
    hidden_size: Count = 512
    layers: Count = 2
    tied: bool = False
    """The projection's weights are the embedding's (Press & Wolf 2016, arXiv:1608.05859)."""
    embedding_dropout: Probability = 0.0


class LanguageModelConfig(LanguageModelShape, NetworkConfig):
    """The shape of a language model and its regularisation."""

    vocabulary_size: Count

    @property
    def hidden_sizes(self) -> list[int]:
        """H of each layer. With tied weights the last layer is as wide as the embedding (Merity et al. 2017)."""
        return [self.hidden_size] * (self.layers - 1) + [self.embedding_size if self.tied else self.hidden_size]


@NETWORKS.register("language")
class LanguageModel(Network):
    """Embedding, recurrent stack, projection to the vocabulary."""

    Config = LanguageModelConfig
    config: LanguageModelConfig
    embedding: nn.Embedding

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.input_dropout = sequence_dropout(config.input_dropout, config.locked)
        self.stack = RecurrentStack(
            config.cell,
            config.embedding_size,
            config.hidden_sizes,
            hidden_dropout=config.hidden_dropout,
            output_dropout=config.output_dropout,
            weight_drop=config.weight_drop,
            locked=config.locked,
        )
        self.projection = nn.Linear(config.hidden_sizes[-1], config.vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.projection.bias)
        if config.tied:
            self.projection.weight = self.embedding.weight

    def forward(self, ids: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Run T steps and return the logits of each.

        Args:
            ids: token ids, each in [0, V). <int64>[B, T]
            state: what the previous call left; zeros at a text's start. <float32>[B, H] each

        Returns:
            Unnormalised logits of the token after each step <float32>[B, T, V], and the state after step T.

        Raises:
            ShapeMismatch: the state is not this model's, or its batch differs from that of ids.
        """
        table = self.embedding.weight  # [V, E]
        if self.training and self.config.embedding_dropout > 0:
            table = drop_words(table, self.config.embedding_dropout)
        # Time-major in memory, as the recurrent kernels want it; the [B, T] views of it cost nothing.
        x = self.input_dropout(functional.embedding(ids.t(), table))  # [T, B, E]
        y, after = self.stack(x.transpose(0, 1), state)  # [B, T, H]
        logits = self.projection(y.transpose(0, 1))  # [T, B, V]
        return logits.transpose(0, 1), after  # [B, T, V]

    def step_module(self) -> StepModule:
        """See Network."""
        return LanguageStep(self, {"token": self.config.vocabulary_size}, "logits")


class LanguageStep(StepModule):
    """One step of a LanguageModel."""

    def forward(self, token: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Make one step.

        Args:
            token: the token to read. <int64>[B]
            state: what the previous step left, by name (`h0`, `c0`, ...). [B, ...] each

        Returns:
            Logits of the next token <float32>[B, V], and the state after this one, in the order of `state_shapes`.
        """
        y, after = self.stack(self.embedding(token), state)  # [B, H]
        return self.projection(y), after


@torch.inference_mode()
def generate(model: LanguageModel, prompt: list[int], steps: int, temperature: float = 0.0, seed: int = 0) -> list[int]:
    """Sample `steps` tokens after `prompt`, one full forward pass of the whole history per token.

    Slow and obviously right: no state is carried, so it is the oracle for everything that carries one.

    Args:
        prompt: token ids, at least one.
        steps: how many tokens to add.
        temperature: 0 takes the most probable token; above, samples from softmax(logits / temperature).
        seed: of the torch generator that samples.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    history = list(prompt)
    for _ in range(steps):
        logits, _ = model(torch.tensor([history]), model.initial_state(1))
        last = logits[0, -1]  # [V]
        if temperature == 0.0:
            history.append(int(last.argmax()))
        else:
            weights = torch.softmax(last / temperature, dim=-1)
            history.append(int(torch.multinomial(weights, 1, generator=generator)))
    return history[len(prompt) :]
