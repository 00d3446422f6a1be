"""What every reader makes of its file: one learner's answers, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from carousel.training.errors import CorpusError

Skills = tuple[str, ...]
"""The skills that one answer took, each once, sorted, as the file spells them: mostly a single one."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One learner's answers, oldest first."""

    name: str
    """As models.codec.spelling.one_id spells it; empty where the format has no names."""
    skills: list[Skills]
    correct: list[bool]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of its files."""

    learners: list[Transcript]
    remarks: tuple[str, ...] = ()
    """What was joined, left out or read in another spelling, for people."""


def skill_set(names: Iterable[str]) -> Skills:
    """The skills of one answer."""
    return tuple(sorted(set(names)))


def read_correct(cell: str, where: str) -> bool:
    """Whether the answer was right.

    Raises:
        CorpusError: the cell is neither 0 nor 1.
    """
    match cell.strip().lower():
        case "1" | "1.0" | "true":
            return True
        case "0" | "0.0" | "false":
            return False
        case other:
            raise CorpusError(f"{where}: correct is {other!r}; allowed are 0 and 1")
