"""Lines of symbols that are made up, each with what may come next; each other file of this room is a kind.

A language model learns them as it learns any text. What it must have understood is known here exactly, so it is judged
by more than nats: after each symbol, does it hold what may come next, and nothing else, for the most probable?
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from carousel.models.registry import Registry
from carousel.models.strict import Strict


@dataclass(frozen=True, slots=True)
class Line:
    """A line, without its end."""

    symbols: Sequence[str]
    legal: Sequence[frozenset[str] | None]
    """What may stand at each place, given those before it; None where that is not judged."""
    group: str = ""
    """Lines of a group have a figure of their own: a gap, a depth."""


class SymbolKind(Strict):
    """What a recipe may say of a kind of lines: its parameters."""

    separator: ClassVar[str] = ""
    """Between symbols: nothing where they are characters, a blank where they are words."""

    @abstractmethod
    def line(self, draw: random.Random) -> Line:
        """One line, a function of the generator's state and the parameters alone."""

    def text(self, lines: Sequence[Line]) -> str:
        """Lines as they are learnt."""
        return "".join(self.separator.join(line.symbols) + "\n" for line in lines)


SYMBOLS: Registry[type[SymbolKind]] = Registry(__package__)
"""By the name that a recipe's `corpus.kind` gives."""
