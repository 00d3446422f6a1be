"""A part of what is written down for others to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Part(BaseModel):
    """Unknown keys are refused: a field that is not understood must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=BaseModel)


def first_mistake(error: ValidationError, *within: str) -> str:
    """Where the first thing is that is wrong, and what: `files.a: Field required`; `content` is the whole."""
    first = error.errors()[0]
    where = ".".join([*within, *map(str, first["loc"])]) or "content"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def by_kind(value: object, kinds: Mapping[str, type[P]], what: str) -> P:
    """What a manifest says, read by the class that its `kind` names.

    Args:
        value: as it was read, or already the part.
        kinds: all that there are, by name.
        what: one of them, in words, with its article.

    Raises:
        ValueError: there is no such kind, or it is said otherwise.
    """
    for known in kinds.values():
        if isinstance(value, known):
            return value
    kind = str(value.get("kind")) if isinstance(value, dict) else "nothing"
    if kind not in kinds:
        raise ValueError(f"{what} is of kind {kind!r}; known are {', '.join(sorted(kinds))}")
    return kinds[kind].model_validate(value)
