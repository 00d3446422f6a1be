"""What every reader makes of its file: one learner's answers, in order."""

from __future__ import annotations

from dataclasses import dataclass

from training.errors import CorpusError

COMBINED = " & "
"""Between the names of the skills that one answer took together."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One learner's answers, oldest first."""

    name: str
    """As the file has it; empty where the format has no names."""
    skills: list[str]
    correct: list[bool]


def combine(skills: set[str]) -> str:
    """The one skill of an answer that took several: an answer is one attempt, so none of its rows predicts another."""
    return COMBINED.join(sorted(skills))


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
