"""Captioning models: an image in, and after each word the logits of the next.

Axes: N images, K captions of each image, B = N * K rows, T steps, V vocabulary, E embedding, H hidden, P image
positions, D features of a position, C of a value, A of a key.

Without attention the model is Show and Tell (Vinyals et al. 2014, arXiv:1411.4555), with the image's pooled feature as
the first state (the paper makes it the first input; but little of one input is left in a state that begins at zeros).
With soft attention it is Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): in each step the network first looks
at the map.

Features of a frozen extractor are pooled by their mean. An encoder of the model's own is pooled by the maximum: a thing
that fills one position of 64 is lost in their mean, and the encoder would not learn to see it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from carousel.models.nn.attention import SoftAttention
from carousel.models.nn.cells.cell import CELLS, CellName
from carousel.models.nn.config import NetworkConfig
from carousel.models.nn.convolution import ResidualNetwork
from carousel.models.nn.dropout import sequence_dropout
from carousel.models.nn.network import NETWORKS, Network, StepModule
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState
from carousel.models.strict import Count, Probability, Strict

Attention = Literal["none", "soft"]
Context = dict[str, Tensor]

LAYER = "h0"
"""The state that attention is asked with and words are said from: there is one recurrent layer."""


class CaptioningModelShape(Strict):
    """What a recipe says of a captioning model."""

    cell: CellName = "lstm"
    attention: Attention = "soft"
    embedding_size: Count = 256
    hidden_size: Count = 512
    value_size: Count = 512
    """C; soft attention only."""
    key_size: Count = 256
    """A; soft attention only."""
    tied: bool = False
    """The weights that say words are the embedding's."""
    image_dropout: Probability = 0.0
    """On the image's features, pooled where there is no attention."""
    input_dropout: Probability = 0.0
    output_dropout: Probability = 0.0
    locked: bool = False
    """One dropout mask for all of a caption's steps instead of one per step."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.tied and self.attention == "none" and self.embedding_size != self.hidden_size:
            raise ValueError(
                "tied without attention takes embedding_size = hidden_size; "
                f"they are {self.embedding_size} and {self.hidden_size}"
            )
        if self.attention == "soft" and "h" not in CELLS[self.cell].states:
            raise ValueError(f"attention 'soft' asks with a state h, which cell {self.cell!r} has not")
        return self


class CaptioningModelConfig(CaptioningModelShape, NetworkConfig):
    """The shape of a captioning model and its regularisation."""

    vocabulary_size: Count
    rows: Count
    """Of the map of features, P = rows * columns."""
    columns: Count
    feature_size: Count
    """D."""
    channels: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Of the stages of the model's own convolutional encoder, the last D; empty where an extractor that is no part of
    the model gives the features."""

    @model_validator(mode="after")
    def _channels_end_in_features(self) -> Self:
        if self.channels and self.channels[-1] != self.feature_size:
            raise ValueError(f"feature_size is {self.feature_size}; the last of channels is {self.channels[-1]}")
        return self

    @property
    def positions(self) -> int:
        """P."""
        return self.rows * self.columns


@NETWORKS.register("captioning")
class CaptioningModel(Network):
    """Encoder (perhaps), what the image becomes, embedding, one recurrent layer, projection to the vocabulary.

    An image comes as its features <float32>[N, P, D], where the extractor is no part of the model, or as pixels
    <float32>[N, 3, height, width], where it is. Without attention, features may also come pooled: [N, D].
    """

    Config = CaptioningModelConfig
    encodes = True
    config: CaptioningModelConfig
    embedding: nn.Embedding

    def __init__(self, config: CaptioningModelConfig) -> None:
        super().__init__()
        self.config = config
        attends = config.attention == "soft"
        self.network = ResidualNetwork(config.channels) if config.channels else None
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.attention = (
            SoftAttention(
                config.feature_size,
                config.positions,
                config.value_size,
                config.key_size,
                config.hidden_size + config.embedding_size,
            )
            if attends
            else None
        )
        input_size = config.embedding_size + (config.value_size if attends else 0)
        self.stack = RecurrentStack(config.cell, input_size, [config.hidden_size])
        # The first state, from the pooled values or, without attention, features.
        self.image = nn.Linear(
            config.value_size if attends else config.feature_size, sum(map(math.prod, self.stack.state_shapes.values()))
        )
        self.detector = nn.Linear(config.feature_size, config.vocabulary_size) if config.channels else None
        self.readout = nn.Linear(config.hidden_size + config.value_size, config.embedding_size) if attends else None
        self.projection = nn.Linear(config.embedding_size if attends else config.hidden_size, config.vocabulary_size)
        self.image_dropout = nn.Dropout(config.image_dropout)
        self.input_dropout = sequence_dropout(config.input_dropout, config.locked)
        self.output_dropout = sequence_dropout(config.output_dropout, config.locked)
        first = self.image if self.attention is None else self.attention.values
        nn.init.uniform_(first.weight, -1.0, 1.0)  # what reads the features, which `features` makes small
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.projection.bias)
        if config.tied:
            self.projection.weight = self.embedding.weight

    def features(self, images: Tensor) -> Tensor:
        """The image's features, divided by sqrt(D).

        They are many, and most are positive: Adam, whose steps are alike for every weight, would otherwise move what is
        made of them by the sum of them all at once.
        """
        features: Tensor = images if self.network is None else self.network(images)
        return features / math.sqrt(self.config.feature_size)

    def encode(self, images: Tensor) -> tuple[RecurrentState, Context]:
        """Make of each image the state before its first word and what every step reads of it.

        Args:
            images: features <float32>[N, P, D] or, without attention, [N, D]; pixels <float32>[N, 3, H, W] where the
                encoder is the model's own.

        Returns:
            The first state <float32>[N, H] each, and the context, <float32>[N, P, C] and [N, P, A]; none without
            attention.
        """
        return self.begin(self.features(images))

    def begin(self, features: Tensor) -> tuple[RecurrentState, Context]:
        """As `encode`, from what `features` gave: <float32>[N, P, D] or, without attention, [N, D]."""
        context: Context = {}
        if self.attention is None:
            pooled = self.image_dropout(self._pool(features))  # [N, D]
        else:
            context = self.attention.context(self.image_dropout(features))
            pooled = self._pool(context["values"])  # [N, C]
        return self.first_state(pooled), context

    def first_state(self, pooled: Tensor) -> RecurrentState:
        """The state before the first word, of one vector an image. <float32>[N, C or D]"""
        shapes = self.stack.state_shapes
        parts = torch.split(torch.tanh(self.image(pooled)), [math.prod(shape) for shape in shapes.values()], dim=1)
        return {name: part.view(-1, *shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def detect(self, features: Tensor) -> Tensor:
        """Which words are true of each image, whatever its captions' wording: how an own encoder learns to see.

        A word is as likely as at the position where it is likeliest (multiple-instance learning, Fang et al. 2015,
        arXiv:1411.4952). Only training asks.

        Args:
            features: as `features` gives them, of the model's own encoder. <float32>[N, P, D]

        Returns:
            Logits. <float32>[N, V]
        """
        assert self.detector is not None
        logits: Tensor = self.detector(features * math.sqrt(self.config.feature_size))  # [N, P, V]
        return logits.amax(1)

    def _pool(self, positions: Tensor) -> Tensor:
        """One vector of many. [N, P, size] -> [N, size]; pooled already: as it is."""
        if positions.dim() == 2:
            return positions
        return positions.mean(1) if self.network is None else positions.amax(1)

    def step(
        self, token: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, RecurrentState, Tensor | None]:
        """Eat one token and say the next: evaluation, without dropout.

        Args:
            token: <int64>[B], B the N images or K rows for each, an image's rows side by side
            state: what the previous step left, or `encode` gave. <float32>[B, H] each
            context: as `encode` gave it, of N images.

        Returns:
            Logits of the next token <float32>[B, V], the state after this one, and where this step looked
            <float32>[B, rows, columns], None without attention.
        """
        x = self.embedding(token)  # [B, E]
        said, state, alpha = self._look_and_move(x, state, context)
        logits = self.projection(self._read_out(said, x))
        if alpha is not None:
            alpha = alpha.view(-1, self.config.rows, self.config.columns)
        return logits, state, alpha

    def forward(
        self, images: Tensor, ids: Tensor, present: Tensor, sampled: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing, from images as `encode` takes them; the rest is as of `teach`."""
        return self.teach(self.features(images), ids, present, sampled)

    def teach(
        self, features: Tensor, ids: Tensor, present: Tensor, sampled: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: what is said after each of the given tokens.

        Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099): from the second step on, each token is replaced
        with probability `sampled` by one drawn from what the model said at the step before.

        Args:
            features: as `features` gives them. <float32>[N, P, D] or [N, D]
            ids: what each step consumes. <int64>[N, K, T]
            present: False behind a caption's end, where ids mean nothing. <bool>[N, K, T]
            sampled: in [0, 1].

        Returns:
            Logits <float>[S, V] of the S steps that are present, a caption's steps one after another, caption after
            caption; and where each step looked <float>[N, K, T, P], None without attention.
        """
        count, captions, steps = ids.shape
        state, context = self.begin(features)
        state = {name: part.repeat_interleave(captions, 0) for name, part in state.items()}  # [B, H]
        tokens = ids.flatten(0, 1).t()  # [T, B]
        words = self.embedding(tokens)  # [T, B, E]
        mask = self.input_dropout(torch.ones_like(words))
        if self.attention is None and not sampled:  # nothing happens between the steps: all of them in one call
            y, _ = self.stack((words * mask).transpose(0, 1), state)  # [B, T, H]
            return self.projection(self.output_dropout(y.transpose(0, 1)).transpose(0, 1)[present.flatten(0, 1)]), None
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        looks: list[Tensor] = []
        for position in range(steps):
            x = words[position]
            if sampled and position:
                x = self._scheduled(x, outputs[-1], inputs[-1], sampled)
            x = x * mask[position]
            said, state, alpha = self._look_and_move(x, state, context)
            inputs.append(x)
            outputs.append(said)
            if alpha is not None:
                looks.append(alpha)
        y = self.output_dropout(self._read_out(torch.stack(outputs), torch.stack(inputs)))  # [T, B, E or H]
        logits = self.projection(y.transpose(0, 1)[present.flatten(0, 1)])  # [S, V]
        if not looks:
            return logits, None
        return logits, torch.stack(looks, 1).view(count, captions, steps, -1)  # [N, K, T, P]

    @torch.no_grad()
    def _scheduled(self, x: Tensor, said: Tensor, before: Tensor, sampled: float) -> Tensor:
        """x, some of its rows replaced by words drawn from what the step before said. <float>[B, E]"""
        weights = torch.softmax(self.projection(self._read_out(said, before)).float(), dim=1)  # [B, V]
        drawn = torch.multinomial(weights, 1)[:, 0]
        return torch.where(torch.rand(len(x), 1, device=x.device) < sampled, self.embedding(drawn), x)

    def _look_and_move(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, RecurrentState, Tensor | None]:
        """One step up to, not including, the words: h (and what was seen) <float>[B, H (+ C)], state, alpha [B, P]."""
        if self.attention is None:
            y, state = self.stack(x[:, None], state)  # [B, 1, H]
            return y[:, 0], state, None
        seen, alpha = self.attention(torch.cat([state[LAYER], x], 1), context)  # [B, C], [B, P]
        y, state = self.stack(torch.cat([x, seen], 1)[:, None], state)
        return torch.cat([y[:, 0], seen], 1), state, alpha

    def _read_out(self, said: Tensor, x: Tensor) -> Tensor:
        """What the projection reads: h, or with attention tanh(W [h; z] + E y) (the paper's deep output)."""
        return said if self.readout is None else torch.tanh(self.readout(said) + x)

    def step_module(self) -> CaptioningStep:
        """See Network."""
        return CaptioningStep(self)


class CaptioningStep(StepModule):
    """One step of a CaptioningModel."""

    def __init__(self, model: CaptioningModel) -> None:
        config = model.config
        super().__init__(model, {"token": config.vocabulary_size}, "logits")
        self.look = None if model.attention is None else model.attention.step()
        self.readout = model.readout
        if self.look is not None:
            self.context_shapes = {
                "values": (config.positions, config.value_size),
                "keys": (config.positions, config.key_size),
            }
            self.grid = (config.rows, config.columns)

    def forward(
        self, token: Tensor, state: RecurrentState, context: Context | None = None
    ) -> tuple[Tensor, RecurrentState] | tuple[Tensor, RecurrentState, Tensor]:
        """Make one step.

        Args:
            token: the token to read. <int64>[B]
            state: what the previous step or the encoder left. <float32>[B, H] each
            context: `values` <float32>[B, P, C] and `keys` <float32>[B, P, A]; None without attention.

        Returns:
            Logits of the next token <float32>[B, V], the state after this one, and with attention where this step
            looked <float32>[B, rows, columns].
        """
        x = self.embedding(token)  # [B, E]
        if self.look is None or self.grid is None or self.readout is None or context is None:
            y, after = self.stack(x, state)  # [B, H]
            return self.projection(y), after
        question = torch.cat([state[LAYER], x], dim=1)  # [B, H + E]
        seen, alpha = self.look(question, context["values"], context["keys"])  # [B, C], [B, P]
        y, after = self.stack(torch.cat([x, seen], dim=1), state)
        said = torch.tanh(self.readout(torch.cat([y, seen], dim=1)) + x)  # [B, E]
        return self.projection(said), after, alpha.unflatten(1, self.grid)
