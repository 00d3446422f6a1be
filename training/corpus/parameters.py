"""The parameters of what is made up: a recipe gives them as a table, and each kind has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from carousel.models.registry import Registry
from carousel.models.strict import Strict, first_wrong

Kind = TypeVar("Kind", bound=Strict)


def made_up(kinds: Registry[type[Kind]], kind: str, parameters: Mapping[str, int | float]) -> Kind:
    """The kind of that name, with its parameters.

    Raises:
        ValueError: the first of them that it does not have, or that is out of range.
    """
    try:
        return kinds[kind].model_validate(dict(parameters))
    except ValidationError as error:
        key, reason = first_wrong(error)
    allowed = ", ".join(kinds[kind].model_fields) or "none"
    raise ValueError(f"parameters.{'.'.join(key)}{reason}; {kind} has {allowed}")
