"""The three-line format: for each learner the number of answers, the skills, and 0 or 1 for each answer.

    4
    12,12,7,12
    0,1,1,1

A trailing comma is allowed (Piech et al.'s files have one). The format has no learners' names: three lines are one.
"""

from __future__ import annotations

from carousel.training.corpus.files import lines_of
from carousel.training.corpus.transcript import Transcript, read_correct
from carousel.training.errors import CorpusError


def read_three_line(text: str, file: str) -> list[Transcript]:
    """The learners of a file that have an answer.

    Raises:
        CorpusError: naming file and line.
    """
    lines = lines_of(text.rstrip())
    if len(lines) % 3 and not (len(lines) % 3 == 1 and lines[-1].strip() == "0"):  # rstrip ate an empty learner's lines
        raise CorpusError(f"{file}: has {len(lines):,} lines; allowed are three for each learner")
    learners = []
    for start in range(0, len(lines) - 2, 3):
        length, skills, answers = lines[start].strip(), _cells(lines[start + 1]), _cells(lines[start + 2])
        if not (length.isascii() and length.isdigit()):
            raise CorpusError(f"{file}, line {start + 1}: is {length[:40]!r}; allowed is a number of answers")
        for offset, what, cells in ((2, "skills", skills), (3, "answers", answers)):
            if len(cells) != int(length):
                raise CorpusError(
                    f"{file}, line {start + offset}: has {len(cells):,} {what}; line {start + 1} says {int(length):,}"
                )
        if "" in skills:
            raise CorpusError(
                f"{file}, line {start + 2}: skill {skills.index('') + 1} is empty; allowed is a name or id"
            )
        if skills:
            where = f"{file}, line {start + 3}"
            learners.append(
                Transcript("", [(skill,) for skill in skills], [read_correct(cell, where) for cell in answers])
            )
    return learners


def _cells(line: str) -> list[str]:
    line = line.strip().removesuffix(",")
    return [cell.strip() for cell in line.split(",")] if line else []
