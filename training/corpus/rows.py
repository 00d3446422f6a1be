"""Row-per-answer CSV: a learner, an order, a skill and 0 or 1 in each row, with ASSISTments' column names or others.

An answer that took several skills is written as several rows of one order (ASSISTments), as rows that share a cell of
a column of its own (`answer`), or as several skills in one cell. Each is **one attempt at one combined skill**, its
names sorted and joined by " & ". Fed to a model as attempts of their own, the second row would be predicted from the
first, which is the very answer: an AUC that no learner gives (on ASSISTments 2009 about 0.82 instead of 0.75; Xiong et
al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from carousel.models.codec.spelling import one_id, spelling_remarks
from carousel.training.corpus.orders import OrderColumn
from carousel.training.corpus.tables import table
from carousel.training.corpus.transcript import Reading, Transcript, read_correct, skill_set
from carousel.training.errors import CorpusError

Ties = Literal["one-answer", "file"]


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read."""

    user: str
    order: str
    skill: str
    correct: str
    separator: str = ""
    """Between the skills of one cell; empty where a cell holds one."""
    answer: str = ""
    """Which rows are one answer; empty where `ties` says it."""
    ties: Ties = "one-answer"
    """What rows of one order are: one answer, or answers of their own in the file's order."""

    @property
    def needed(self) -> list[str]:
        """Those that a file must have."""
        return [self.user, self.order, self.skill, self.correct, *([self.answer] if self.answer else [])]


@dataclass(slots=True)
class _Answer:
    first: Decimal
    """Its smallest order."""
    last: Decimal
    correct: bool
    where: str
    skills: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Learner:
    answers: list[_Answer] = field(default_factory=list)
    """In the file's order."""
    by_key: dict[object, _Answer] = field(default_factory=dict)


class _Rows:
    """The rows of a corpus, as they come."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._order = OrderColumn(columns.order)
        self._learners: dict[str, _Learner] = {}
        self._users: dict[str, str] = {}
        self._rows = self._skipped = self._joined = self._repeated = 0

    def add(self, row: dict[str, str], where: str) -> None:
        columns = self._columns
        user = self._users.setdefault(row[columns.user], one_id(row[columns.user]))
        if not user:
            raise CorpusError(f"{where}: {columns.user} is empty; allowed is what tells learners apart")
        order = self._order.read(row[columns.order], where)
        correct = read_correct(row[columns.correct], where)
        cell = row[columns.skill]
        skills = {part.strip() for part in (cell.split(columns.separator) if columns.separator else [cell])} - {""}
        if not skills:
            self._skipped += 1
            return
        self._rows += 1
        learner = self._learners.setdefault(user, _Learner())
        key = self._key(row, order, where)
        answer = None if key is None else learner.by_key.get(key)
        if answer is None:
            answer = _Answer(order, order, correct, where)
            learner.answers.append(answer)
            if key is not None:
                learner.by_key[key] = answer
        else:
            self._joined += 1
            self._repeated += skills <= answer.skills
        if answer.correct != correct:
            raise CorpusError(self._both(row, user, where, answer.where))
        answer.skills |= skills
        answer.first, answer.last = min(answer.first, order), max(answer.last, order)

    def _key(self, row: dict[str, str], order: Decimal, where: str) -> object:
        """What rows of one answer share; None where each is one of its own."""
        if not self._columns.answer:
            return order if self._columns.ties == "one-answer" else None
        answer = one_id(row[self._columns.answer])
        if not answer:
            raise CorpusError(f"{where}: {self._columns.answer} is empty; allowed is what tells answers apart")
        return answer

    def _both(self, row: dict[str, str], user: str, where: str, other: str) -> str:
        if self._columns.answer:
            what, column, way_on = "answer", self._columns.answer, "rows of one answer are right or wrong together"
        else:
            what, column = "order", self._columns.order
            way_on = (
                "rows of one order are one answer; name the column that tells answers apart with corpus.answer, or set "
                "corpus.ties = 'file' where each row is an answer"
            )
        return (
            f"{where}: learner {user!r} has {what} {row[column].strip()} both right and wrong "
            f"(the other is in {other}); {way_on}"
        )

    def reading(self) -> Reading:
        """What has been added."""
        learners, tied = [], 0
        for user, learner in self._learners.items():
            answers = sorted(
                learner.answers, key=lambda answer: answer.first
            )  # stable: equals stay in the file's order
            for one, other in pairwise(answers):
                if other.first < one.last:
                    raise CorpusError(
                        f"{other.where}: learner {user!r} gives this answer in the midst of the one in {one.where}; "
                        f"rows that share their {self._columns.answer} must stand together by {self._columns.order}"
                    )
                tied += other.first == one.first
            learners.append(
                Transcript(
                    user, [skill_set(answer.skills) for answer in answers], [answer.correct for answer in answers]
                )
            )
        return Reading(learners, self._remarks(sum(len(learner.correct) for learner in learners), tied))

    def _remarks(self, answers: int, tied: int) -> tuple[str, ...]:
        columns = self._columns
        remarks = [f"{self._skipped:,} rows without a skill were left out"] if self._skipped else []
        told = f"{self._rows:,} rows are {answers:,} answers"
        if columns.answer or columns.ties == "one-answer":
            told += f"; {self._joined:,} rows were joined to another of the same {columns.answer or columns.order}"
            told += f", {self._repeated:,} with no skill that it had not" if self._repeated else ""
        remarks.append(told)
        if tied:
            remarks.append(
                f"{tied:,} answers have the {columns.order} of the one before; they stand in the file's order"
            )
        if self._order.rounded:
            remarks.append(
                f"{columns.order} is written as a rounded number, such as {self._order.rounded}; whoever wrote the "
                "file may have made several orders one"
            )
        return (*remarks, *spelling_remarks("learners", self._users))


def read_rows(texts: Sequence[tuple[str, str]], columns: Columns) -> Reading:
    """The learners of some files.

    Args:
        texts: (file, content) each; a learner's rows may lie anywhere in them.
        columns: what the columns are called.

    Raises:
        CorpusError: naming file and line.
    """
    rows = _Rows(columns)
    for file, text in texts:
        for where, row in table(file, text, columns.needed):
            rows.add(row, where)
    return rows.reading()
