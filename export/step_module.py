"""One step of a recurrent model, written as the graph that is served.

Axes: B batch rows, V vocabulary, S skills, E input features, H hidden units.

Training runs fused kernels over many steps; serving runs one step for many rows. So a layer's weights are laid out
anew here: an LSTM's two matrices and two biases become one of each, applied to x and h side by side. Evaluation only:
no dropout, and none of the training module's shape checks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.language import LanguageModel
from carousel.models.nn.recurrent import RecurrentLayer, RecurrentStack, RecurrentState
from carousel.models.nn.tracing import TracingModel
from carousel.models.step import STEP_INPUTS, Task

Model = LanguageModel | TracingModel


class StepLSTM(nn.Module):
    """One step of an LSTM layer.

    i, f, g, o = split([W_ih W_hh] [x; h] + b),  c' = sigmoid(f) * c + sigmoid(i) * tanh(g),  h' = sigmoid(o) * tanh(c')
    """

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        rnn = dict(layer.rnn.named_parameters())
        self.weight = nn.Parameter(torch.cat([rnn["weight_ih_l0"], rnn["weight_hh_l0"]], dim=1))  # [4H, E + H]
        self.bias = nn.Parameter(rnn["bias_ih_l0"] + rnn["bias_hh_l0"])  # [4H]

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Make one step. x <float32>[B, E], state (h, c) <float32>[B, H] each -> the next (h, c)."""
        h, c = state
        gates = functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias)  # [B, 4H]
        i, f, g, o = gates.chunk(4, dim=1)  # [B, H] each
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class StepGRU(nn.Module):
    """One step of a GRU layer. Two products, because the reset gate multiplies the hidden one before they are summed.

    r, z = sigmoid(...),  n = tanh(W_in x + b_in + r * (W_hn h + b_hn)),  h' = (1 - z) * n + z * h
    """

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        rnn = dict(layer.rnn.named_parameters())
        self.input_weight = nn.Parameter(rnn["weight_ih_l0"].clone())  # [3H, E]
        self.input_bias = nn.Parameter(rnn["bias_ih_l0"].clone())  # [3H]
        self.hidden_weight = nn.Parameter(rnn["weight_hh_l0"].clone())  # [3H, H]
        self.hidden_bias = nn.Parameter(rnn["bias_hh_l0"].clone())  # [3H]

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Make one step. x <float32>[B, E], state (h,) <float32>[B, H] -> the next (h,)."""
        (h,) = state
        from_input = functional.linear(x, self.input_weight, self.input_bias).chunk(3, dim=1)  # [B, H] each
        from_hidden = functional.linear(h, self.hidden_weight, self.hidden_bias).chunk(3, dim=1)  # [B, H] each
        r = torch.sigmoid(from_input[0] + from_hidden[0])
        z = torch.sigmoid(from_input[1] + from_hidden[1])
        n = torch.tanh(from_input[2] + r * from_hidden[2])
        return ((1 - z) * n + z * h,)


class StepStack(nn.Module):
    """One step of a RecurrentStack."""

    def __init__(self, stack: RecurrentStack) -> None:
        super().__init__()
        layers = stack.typed_layers()
        self.state_kinds = [layer.state_kinds for layer in layers]
        self.layers = nn.ModuleList(StepLSTM(layer) if layer.cell == "lstm" else StepGRU(layer) for layer in layers)

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Make one step. x <float32>[B, E], states <float32>[B, H] each -> the last layer's h, and the next states."""
        after: RecurrentState = {}
        for depth, (layer, kinds) in enumerate(zip(self.layers, self.state_kinds, strict=True)):
            states = layer(x, tuple(state[f"{kind}{depth}"] for kind in kinds))
            after |= {f"{kind}{depth}": part for kind, part in zip(kinds, states, strict=True)}
            x = states[0]  # [B, H]
        return x, after


class StepModule(nn.Module):
    """One step of a model: what it eats and the state in, what it says and the next state out.

    Args:
        model: embedding, stack and projection.
        task: whose inputs and output the contract names.
        input_bounds: each input's name, in the contract's order, and what its values are below.
    """

    def __init__(self, model: Model | CaptioningModel, task: Task, input_bounds: dict[str, int]) -> None:
        super().__init__()
        assert tuple(input_bounds) == STEP_INPUTS[task]
        self.task: Task = task
        self.input_bounds = input_bounds
        self.memory_shapes: dict[str, tuple[int, ...]] = {}
        """Of a row, by name: what a step reads and does not rewrite."""
        self.grid: tuple[int, int] | None = None
        """Rows and columns of where a step looks; None where it does not."""
        self.state_sizes = model.stack.state_sizes
        self.embedding = model.embedding
        self.stack = StepStack(model.stack)
        self.projection = model.projection
        self.eval()


class LanguageStep(StepModule):
    """One step of a LanguageModel."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model, "language", {"token": model.config.vocabulary_size})

    def forward(self, token: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Make one step.

        Args:
            token: the token to read. <int64>[B]
            state: what the previous step left, by name (`h0`, `c0`, ...). <float32>[B, H] each

        Returns:
            Logits of the next token <float32>[B, V], and the state after this one, in the order of `state_sizes`.
        """
        y, after = self.stack(self.embedding(token), state)  # [B, H]
        return self.projection(y), after


class TracingStep(StepModule):
    """One step of a TracingModel."""

    def __init__(self, model: TracingModel) -> None:
        super().__init__(model, "tracing", {"skill": model.config.skill_count, "correct": 2})

    def forward(self, skill: Tensor, correct: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Take in one attempt.

        Args:
            skill: what was tried, in [0, S). <int64>[B]
            correct: 1 where the answer was right, else 0. <int64>[B]
            state: what the previous step left, by name (`h0`, `c0`, ...). <float32>[B, H] each

        Returns:
            P(correct) of the next attempt at each skill <float32>[B, S], and the state after this one, in the order
            of `state_sizes`.
        """
        y, after = self.stack(self.embedding(2 * skill + correct), state)  # [B, H]
        return torch.sigmoid(self.projection(y)), after


def step_module(model: Model) -> StepModule:
    """The step of a model."""
    return LanguageStep(model) if isinstance(model, LanguageModel) else TracingStep(model)
