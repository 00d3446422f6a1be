"""Row-per-answer CSV: a learner, an order, a skill and 0 or 1 in each row, with ASSISTments' column names or others.

An answer that took several skills is written as several rows of one order (ASSISTments), or as several skills in one
cell. Either is **one attempt at one combined skill**, its names sorted and joined by " & ". Fed to a model as attempts
of their own, the second row would be predicted from the first, which is the very answer: an AUC that no learner gives
(on ASSISTments 2009 about 0.82 instead of 0.75; Xiong et al. 2016).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from training.corpus.transcript import Transcript, combine, read_correct
from training.errors import CorpusError

csv.field_size_limit(1 << 24)  # pyKT keeps a whole history in one cell


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read."""

    user: str
    order: str
    skill: str
    correct: str
    separator: str = ""
    """Between the skills of one cell; empty where a cell holds one."""


@dataclass(slots=True)
class _Answer:
    skills: set[str]
    correct: bool
    where: str


@dataclass(slots=True)
class _Learner:
    answers: dict[float, _Answer] = field(default_factory=dict)


def read_rows(texts: Sequence[tuple[str, str]], columns: Columns) -> tuple[list[Transcript], int]:
    """The learners of some files, and how many rows were left out because they name no skill.

    Args:
        texts: (file, content) each; a learner's rows may lie anywhere in them.
        columns: what the columns are called.

    Raises:
        CorpusError: naming file and line.
    """
    learners: dict[str, _Learner] = {}
    skipped = 0
    for file, text in texts:
        for where, row in table(file, text, [getattr(columns, name.name) for name in fields(columns)][:4]):
            user = row[columns.user].strip()
            if not user:
                raise CorpusError(f"{where}: {columns.user} is empty; allowed is what tells learners apart")
            order = _number(row[columns.order], columns.order, where)
            correct = read_correct(row[columns.correct], where)
            cell = row[columns.skill]
            skills = {part.strip() for part in (cell.split(columns.separator) if columns.separator else [cell])} - {""}
            if not skills:
                skipped += 1
                continue
            answers = learners.setdefault(user, _Learner()).answers
            answer = answers.setdefault(order, _Answer(set(), correct, where))
            if answer.correct != correct:
                raise CorpusError(
                    f"{where}: learner {user!r} has order {order:g} both right and wrong (the other is in "
                    f"{answer.where}); rows of one order are one answer"
                )
            answer.skills |= skills
    return [_transcript(user, learner) for user, learner in learners.items()], skipped


def table(file: str, text: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with where it stands.

    Raises:
        CorpusError: a column is missing, or a row has too few or too many cells.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for column in columns:
            if column not in header:
                raise CorpusError(f"{file}: has no column {column!r}; its columns are {', '.join(header)}")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise CorpusError(f"{where}: has not as many cells as the header, {len(header)}")
            yield where, row
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.reader.line_num}: is not CSV ({error})") from None


def _transcript(user: str, learner: _Learner) -> Transcript:
    answers = [learner.answers[order] for order in sorted(learner.answers)]
    return Transcript(user, [combine(answer.skills) for answer in answers], [answer.correct for answer in answers])


def _number(cell: str, column: str, where: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{where}: {column} is {cell!r}; allowed is a number, by which answers are ordered")
    return number
