"""What a recurrent cell is; each other file of this room is one.

Axes: B batch rows, T steps, E input features, H hidden units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import AfterValidator
from torch import Tensor, nn

from carousel.models.nn.dropout import drop_weight
from carousel.models.registry import Registry

States = tuple[Tensor, ...]
"""What a cell remembers, in the order of its `states`. [B, ...] each"""


class Cell(nn.Module, ABC):
    """One layer of a recurrent network. Its state is explicit: it comes in, it goes out.

    Args:
        input_size: E.
        hidden_size: H.
        weight_drop: probability of dropping an entry of each matrix in `recurrent` for a window.

    Raises:
        ValueError: weights should be dropped, and the cell has none to drop.
    """

    states: ClassVar[tuple[str, ...]]
    """The names of what it remembers."""
    recurrent: ClassVar[tuple[str, ...]] = ()
    """The parameters that a state is multiplied with, which `weight_drop` falls on."""

    carry_gate: ClassVar[str] = ""
    """Which of `gates` what is remembered is multiplied with from step to step; none where empty."""

    def __init__(self, input_size: int, hidden_size: int, weight_drop: float = 0.0) -> None:
        super().__init__()
        if weight_drop and not self.recurrent:
            raise ValueError(f"weight_drop is {weight_drop:g}; this cell has no recurrent matrix, so it should be 0")
        self.input_size, self.hidden_size, self.weight_drop = input_size, hidden_size, weight_drop

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """A row's shape of each state: H, unless a cell says otherwise."""
        return dict.fromkeys(self.states, (self.hidden_size,))

    @abstractmethod
    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        """Run T steps. x <float>[T, B, E] -> what each step puts out <float>[T, B, H], and the states after step T."""

    @abstractmethod
    def step(self) -> nn.Module:
        """One step as it is served, its weights laid out for it: x <float32>[B, E], and the states -> what the step
        puts out <float32>[B, H], and the next states.

        A row must not depend on its neighbours, bit for bit: products with constant weights, sigmoid, tanh and what
        works on one number at a time keep to that (findings/ has those that do not).
        """

    def gates(self, x: Tensor, state: States) -> dict[str, Tensor]:  # noqa: ARG002
        """How far each gate opens in one step, by name, for diagnostics: x <float>[B, E] -> <float>[B, H] each."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, in training less what `weight_drop` drops of them: call it once a window."""
        weights: dict[str, Tensor] = dict(self.named_parameters())
        if self.training and self.weight_drop > 0:
            weights |= {name: drop_weight(weights[name], self.weight_drop, training=True) for name in self.recurrent}
        return weights


CELLS: Registry[type[Cell]] = Registry(__package__)
"""By the name that a recipe's `model.cell` gives."""

CellName = Annotated[str, AfterValidator(CELLS.known)]
