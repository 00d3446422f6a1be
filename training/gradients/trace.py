"""How far back an error reaches: a window read step by step, and the last error's gradient at each state.

Axes: T steps, B batch rows, E features, H hidden units, S numbers of a row's state, D lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from carousel.models.nn.cells.cell import Cell, States
from carousel.models.nn.recurrent import RecurrentStack
from carousel.training.errors import RunError
from carousel.training.task import Task

ROWS = 8
"""Of a window's rows, those that gates and Jacobians are told of."""


class SteppedCell(Cell):
    """A cell that makes one step at a time and keeps what it was fed and what it remembered.

    Args:
        cell: what makes the steps.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell.input_size, cell.hidden_size)
        self.inner = cell
        self.states = cell.states  # type: ignore[misc]  # of the class in cells that are declared, here of each
        self.inputs: list[Tensor] = []
        """<float>[B, E] of each step"""
        self.before: list[States] = []
        """The states that each step was given."""
        self.after: list[States] = []
        """And those that it left."""
        self.said: Tensor | None = None
        """What all steps put out: used by what stands above, and by nothing of the layer itself. <float>[T, B, H]"""

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """See Cell."""
        return self.inner.state_shapes

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """See Cell."""
        said = []
        for one in x:
            self.inputs.append(one)
            self.before.append(state)
            y, state = self.inner(one[None], state)
            self.after.append(state)
            said.append(y[0])
        self.said = torch.stack(said)
        return self.said, state

    def step(self) -> nn.Module:
        """See Cell."""
        return self.inner.step()


@contextmanager
def stepped(stack: RecurrentStack) -> Iterator[list[SteppedCell]]:
    """The stack's layers, each making one step at a time."""
    plain = stack.layers
    traced = [SteppedCell(cell) for cell in stack.cells()]
    stack.layers = nn.ModuleList(traced)
    try:
        yield traced
    finally:
        stack.layers = plain


@dataclass(frozen=True, slots=True)
class Reach:
    """What a window says of how far back its last error reaches."""

    loss: float
    norms: dict[str, list[float]]
    """By state (`h0`, `c0`, ...), the norm of dE/ds(t - d) for d = 0, 1, ..., mean over rows. [D] each"""
    jacobians: list[list[float]]
    """Of each layer, the largest singular value of ds(t)/ds(t - d) of one row, d = 1, 2, ... [D] each"""
    gates: list[dict[str, Tensor]]
    """Of each layer, each gate's opening. <float>[T, B, H] each"""
    carries: list[list[float]]
    """Of each layer that has such a gate, the mean over units of its product over d steps. [D]"""


def reach(task: Task[Any, Any], window: object, jacobian_lags: int = 0) -> Reach:
    """Read a window from the task's first state, without dropout, and follow the error of the last step that has one.

    The module's parameters, their gradients and the random state stay as they are.

    Args:
        task: with the module's present weights.
        window: of the task.
        jacobian_lags: over how many steps products of Jacobians are taken; each costs S backward passes.

    Raises:
        RunError: nothing of the window says anything: no step has an error.
    """
    module, training = task.module, task.module.training
    module.eval()
    try:
        with stepped(module.stack) as layers:
            loss, _ = task.loss(window, task.initial_state())
            top = layers[-1].said
            assert top is not None
            (direct,) = torch.autograd.grad(loss, top, retain_graph=True)  # [T, B, H]
            asked = direct.flatten(1).norm(dim=1).nonzero()
            if not len(asked):
                raise RunError("no step of the window has an error; give a longer batches.window")
            last = int(asked[-1])
            names = [f"{name}{depth}" for depth, layer in enumerate(layers) for name in layer.states]
            kept = [
                part for layer in layers for states in zip(*layer.after[: last + 1], strict=True) for part in states
            ]
            found = torch.autograd.grad(top[last], kept, direct[last], allow_unused=True)
        norms = {}
        for place, name in enumerate(names):
            parts = found[place * (last + 1) : (place + 1) * (last + 1)]
            norms[name] = [0.0 if part is None else part.flatten(1).norm(dim=1).mean().item() for part in parts[::-1]]
        gates = [_gates(layer, last) for layer in layers]
        return Reach(
            loss.item(),
            norms,
            [_products(layer, last, jacobian_lags) for layer in layers] if jacobian_lags else [],
            gates,
            [
                _carried(opening[layer.inner.carry_gate]) if layer.inner.carry_gate in opening else []
                for layer, opening in zip(layers, gates, strict=True)
            ],
        )
    finally:
        module.train(training)


@torch.no_grad()
def _gates(layer: SteppedCell, last: int) -> dict[str, Tensor]:
    steps = [
        layer.inner.gates(x[:ROWS], tuple(part[:ROWS] for part in before))
        for x, before in zip(layer.inputs[: last + 1], layer.before, strict=False)
    ]
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def _carried(opening: Tensor) -> list[float]:
    """Products of the last d openings. <float>[T, B, H] -> [D]"""
    mean: list[float] = opening.flip(0).cumprod(0).flatten(1).mean(1).tolist()
    return mean


def _products(layer: SteppedCell, last: int, lags: int) -> list[float]:
    """Largest singular values of J(t), J(t) J(t-1), ..., of the first row."""
    product, norms = torch.empty(0), []
    for at in range(last, max(last - lags, -1), -1):
        one = jacobian(layer.inner, layer.inputs[at][:1], tuple(part[:1] for part in layer.before[at]))
        product = one if at == last else product @ one
        norms.append(float(torch.linalg.matrix_norm(product, 2)))
    return norms


def jacobian(cell: Cell, x: Tensor, before: States) -> Tensor:
    """d(states after) / d(states before) of one row, all states of the cell side by side. <float>[S, S]

    Every row of a batch of S is the same; of row i, entry i of what comes out is followed back. That asks of a cell
    only that it makes a step.
    """
    size = sum(part.numel() for part in before)
    rows = [part.detach().expand(size, *part.shape[1:]).clone().requires_grad_() for part in before]
    with torch.enable_grad():
        _, after = cell(x.detach().expand(size, -1)[None], tuple(rows))
        flat = torch.cat([part.reshape(size, -1) for part in after], dim=1)  # [S, S]
        found = torch.autograd.grad(flat.diagonal().sum(), rows)
    return torch.cat([part.reshape(size, -1) for part in found], dim=1)
