"""The configuration of a network: what a recipe's [model] says, and what codecs and data decide."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError, model_validator

from carousel.models.errors import CheckpointError
from carousel.models.nn.cells.cell import CELLS, CellName
from carousel.models.strict import Probability, Strict, first_wrong


class NetworkConfig(Strict):
    """What a network is built from; a checkpoint's header holds it."""

    @classmethod
    def of(cls, shape: Strict, **decided: Any) -> Self:
        """From a recipe's [model], and what it does not say."""
        return cls(**shape.model_dump(), **decided)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The inverse of to_json.

        Raises:
            CheckpointError: an unknown key or a value out of range.
        """
        if not isinstance(values, dict):
            raise CheckpointError(f"model configuration: model is {values!r}; it should be an object")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            key, reason = first_wrong(error)
            raise CheckpointError(f"model configuration: {'.'.join(['model', *key])}{reason}") from None


class StackShape(Strict):
    """What every recipe whose network is a stack of layers may say of it."""

    cell: CellName = "lstm"
    locked: bool = True
    """One dropout mask for all steps of a window instead of one per step."""
    input_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.0
    output_dropout: Probability = 0.0
    weight_drop: Probability = 0.0

    @model_validator(mode="after")
    def _weights_to_drop(self) -> Self:
        if self.weight_drop and not CELLS[self.cell].recurrent:
            raise ValueError(f"weight_drop is {self.weight_drop:g}, but cell {self.cell!r} has no weights to drop")
        return self
