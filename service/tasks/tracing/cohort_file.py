"""A file of a whole cohort's answers, for `python -m service trace`.

CSV with the columns `learner`, `skill`, `correct`, in any order and among others. The order is that of the rows, in
which learners may be interleaved, as a log by time is. Rows that share a column of their own may be one answer that
took several skills: an attempt at a combined skill, as training makes of it (models/codec/interaction.py).
"""

from __future__ import annotations

import csv
import re
from array import array
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from carousel.models.codec.interaction import InteractionCodec, combined_skill
from carousel.models.codec.spelling import one_id, spelling_remarks
from carousel.models.errors import CarouselError, UnknownSkill

COLUMNS = ("learner", "skill", "correct")
ORDERS = ("answer_id", "order_id", "order")
"""What columns are called in which rows of one answer are alike; looked at where no column of answers is named."""
TIMES = ("order_id", "order", "timestamp", "time", "start_time")
"""What columns are called by which a learner's rows should ascend."""
CORRECT = {"0": 0, "1": 1, "false": 0, "true": 1}


_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{0,40})?")


class CohortError(CarouselError):
    """The file cannot be traced."""


@dataclass(slots=True)
class Cohort:
    """Every learner's answers, compactly.

    An answer is `2 * skill + correct`; one at a skill that the model does not know is `-1 - (2 * place + correct)`, the
    place being that of its name in `unknown`.
    """

    learners: dict[str, array[int]] = field(default_factory=dict)
    """By name, as it is first written."""
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What was joined, or looks as if it should be, for people."""

    @property
    def answers(self) -> int:
        """How many."""
        return sum(map(len, self.learners.values()))


@dataclass(slots=True)
class _Answer:
    """One answer of a learner's, whose next row may be of it too."""

    key: str
    skills: list[str]
    correct: int
    where: str


def read_cohort(
    source: Path,
    codec: InteractionCodec,
    *,
    by_id: bool = False,
    ignore_unknown: bool = False,
    answer_column: str | None = None,
) -> Cohort:
    """The answers of a file.

    Args:
        source: CSV, UTF-8.
        codec: of the model.
        by_id: whether `skill` holds ids instead of names.
        ignore_unknown: keep answers at skills that the model does not know, unpredicted, instead of refusing the file.
        answer_column: a learner's rows that share it are one answer; None where each row is one.

    Raises:
        CohortError: with the line that is wrong.
        OSError: it cannot be read.
    """
    reading = _Reading(source, codec, by_id, ignore_unknown, answer_column)
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            reading.begin(next(reader, []))
            for row in reader:
                if row:  # else an empty line
                    reading.add(row, f"{source}, line {reader.line_num:,}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise CohortError(f"{source}, line {reader.line_num + 1:,}: is no CSV in UTF-8: {error}") from None
    return reading.cohort()


class _Reading:
    """A file's rows, as they come."""

    def __init__(
        self, source: Path, codec: InteractionCodec, by_id: bool, ignore_unknown: bool, answer_column: str | None
    ) -> None:
        self._source, self._codec = source, codec
        self._by_id, self._ignore_unknown = by_id, ignore_unknown
        self._answer_column = answer_column.strip().lower() if answer_column is not None else None
        self._cohort = Cohort()
        self._unknown: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._read_as: dict[str, str] = {}  # skills in another spelling than the model's
        self._spelled: dict[str, str] = {}  # as written -> as first written
        self._ids: dict[str, str] = {}  # as one_id has it -> as first written
        self._open: dict[str, _Answer] = {}  # by learner, where there is a column of answers
        self._closed: dict[str, set[str]] = {}
        self._joined = 0
        self._order_place: int | None = None
        self._last_orders: dict[str, tuple[str, str]] = {}  # order and skill of a learner's last row
        self._alike = 0
        self._time_place: int | None = None
        self._last_times: dict[str, tuple[int, Decimal | str]] = {}
        self._back = self._passed_over = 0

    def begin(self, first: list[str]) -> None:
        """Take the header."""
        header = [name.strip().lower() for name in first]
        if self._answer_column in COLUMNS:
            raise CohortError(
                f"{self._source}: {self._answer_column} cannot say which rows are one answer; name another column"
            )
        needed = [*COLUMNS, *([self._answer_column] if self._answer_column is not None else [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise CohortError(f"{self._source}: the header lacks {', '.join(missing)}; needed are {', '.join(needed)}")
        for name in needed:
            if header.count(name) > 1:
                raise CohortError(f"{self._source}: the header has {name} {header.count(name)} times; allowed is once")
        self._header = header
        self._places = [header.index(name) for name in COLUMNS]
        self._answer_place = header.index(self._answer_column) if self._answer_column is not None else None
        self._time_place = next((header.index(name) for name in TIMES if header.count(name) == 1), None)
        if self._answer_place is None:
            self._order_place = next((header.index(name) for name in ORDERS if header.count(name) == 1), None)

    def add(self, row: list[str], where: str) -> None:
        """Take a row."""
        if len(row) != len(self._header):
            raise CohortError(f"{where}: {len(row)} fields; the header has {len(self._header)}")
        written, skill, correct = (row[place].strip() for place in self._places)
        if not written:
            raise CohortError(f"{where}: learner is empty; allowed is any text")
        answer = CORRECT.get(correct.lower())
        if answer is None:
            raise CohortError(f"{where}: correct is {correct[:40]!r}; allowed are 0, 1, false and true")
        learner = self._spelled.get(written)
        if learner is None:
            learner = self._spelled[written] = self._ids.setdefault(one_id(written), written)
        self._look_at_time(learner, row)
        if self._answer_place is None:
            self._take(learner, skill, answer, where)
            self._look_at_order(learner, skill, row)
        else:
            self._collect(learner, one_id(row[self._answer_place]), skill, answer, where)

    def _collect(self, learner: str, key: str, skill: str, correct: int, where: str) -> None:
        """Take a row that may go on with the learner's last answer."""
        if not key:
            raise CohortError(f"{where}: {self._answer_column} is empty; allowed is what tells answers apart")
        last = self._open.get(learner)
        if last is not None and last.key == key:
            if last.correct != correct:
                raise CohortError(
                    f"{where}: learner {learner[:40]!r} has {self._answer_column} {key[:40]} both right and wrong (the "
                    f"other is in {last.where}); rows of one answer are right or wrong together"
                )
            last.skills.append(skill)
            self._joined += 1
            return
        closed = self._closed.setdefault(learner, set())
        if key in closed:
            raise CohortError(
                f"{where}: learner {learner[:40]!r} has {self._answer_column} {key[:40]} again, after other answers; "
                "rows of one answer stand together"
            )
        closed.add(key)
        if last is None:
            self._cohort.learners.setdefault(learner, array("i"))  # its place in the output
        else:
            self._close(learner, last)
        self._open[learner] = _Answer(key, [skill], correct, where)

    def _close(self, learner: str, answer: _Answer) -> None:
        self._take(learner, self._combined(answer.skills), answer.correct, answer.where)

    def _combined(self, skills: list[str]) -> str:
        """What the answer's skills are called together: a name or, by id, an id, if the model knows it."""
        if len(set(skills)) == 1:
            return skills[0]
        if not self._by_id:
            return combined_skill(skills)
        try:
            names = [self._codec.skills[self._codec.skill_id(_id(skill))] for skill in skills]
            return str(self._codec.skill_id(combined_skill(names)))
        except UnknownSkill:
            return combined_skill(skills)

    def _take(self, learner: str, skill: str, correct: int, where: str) -> None:
        """An answer: one attempt at one skill."""
        place = self._known.get(skill)
        if place is None and skill not in self._unknown:
            try:
                place = self._known[skill] = self._codec.skill_id(_id(skill) if self._by_id else skill)
                called = str(place) if self._by_id else self._codec.skills[place]
                if called != skill:
                    self._read_as[skill] = called
            except UnknownSkill:
                if not self._ignore_unknown:
                    raise CohortError(f"{where}: {_refusal(skill, self._codec, self._by_id)}") from None
                self._unknown[skill] = len(self._unknown)
        self._passed_over += place is None
        code = 2 * place + correct if place is not None else -1 - (2 * self._unknown[skill] + correct)
        answers = self._cohort.learners.get(learner)
        if answers is None:
            answers = self._cohort.learners[learner] = array("i")
        answers.append(code)

    def _look_at_order(self, learner: str, skill: str, row: list[str]) -> None:
        if self._order_place is None:
            return
        order, before = row[self._order_place], self._last_orders.get(learner)
        self._alike += before is not None and before[0] == order and before[1] != skill
        self._last_orders[learner] = order, skill

    def _look_at_time(self, learner: str, row: list[str]) -> None:
        """Count what stands in the file before what came before it."""
        if self._time_place is None:
            return
        time = _time(row[self._time_place].strip())
        before = self._last_times.get(learner)
        self._back += before is not None and before[0] == time[0] and before[1] > time[1]  # type: ignore[operator]
        self._last_times[learner] = time

    def cohort(self) -> Cohort:
        """What has been read."""
        for learner, answer in self._open.items():
            self._close(learner, answer)
        cohort = self._cohort
        cohort.unknown = list(self._unknown)
        if not cohort.learners:
            raise CohortError(f"{self._source}: there is no answer below the header; at least 1 is needed")
        if self._answer_place is not None:
            cohort.remarks.append(f"{self._joined:,} rows were joined to another of the same {self._answer_column}")
        if self._alike and self._order_place is not None:
            column = self._header[self._order_place]
            cohort.remarks.append(
                f"{self._alike:,} rows are at another skill than the row of the learner before, but have its {column}; "
                f"if they are one answer, say so with --answer {column}: as it is, each is predicted from the other"
            )
        if self._back and self._time_place is not None:
            cohort.remarks.append(
                f"{self._back:,} rows have a smaller {self._header[self._time_place]} than the row of the learner "
                "before; the order that counts is that of the rows: sort the file if it is another"
            )
        if self._passed_over:
            shown = ", ".join(repr(name[:40]) for name in cohort.unknown[:3])
            cohort.remarks.append(
                f"{self._passed_over:,} of {cohort.answers:,} answers are at {len(cohort.unknown):,} skills that the "
                f"model does not know, and are passed over: {shown}{', ...' if len(cohort.unknown) > 3 else ''}"
            )
        if self._read_as:
            shown = ", ".join(f"{name[:40]!r} as {called[:40]!r}" for name, called in list(self._read_as.items())[:3])
            cohort.remarks.append(f"skills in another spelling, {len(self._read_as):,} of them, are read: {shown}")
        again = [written for written, first in self._spelled.items() if written != first]
        if again:
            shown = ", ".join(f"{written[:40]!r} is {self._spelled[written][:40]!r}" for written in again[:3])
            cohort.remarks.append(f"learners written in more than one way are one, {len(again):,} spellings: {shown}")
        cohort.remarks += spelling_remarks("learners", {name: name for name in cohort.learners})
        return cohort


def _time(text: str) -> tuple[int, Decimal | str]:
    """What a time compares by, and with which others it does: numbers, or texts of one length (ISO 8601's)."""
    return (0, Decimal(text)) if _NUMBER.fullmatch(text) else (len(text), text)


def _id(skill: str) -> int:
    """The id that a field spells; -1, which is nobody's, where it spells none."""
    skill = one_id(skill)  # a data frame's 33.0
    return int(skill) if skill.isascii() and skill.isdecimal() and len(skill) < 10 else -1


def _refusal(skill: str, codec: InteractionCodec, by_id: bool) -> str:
    shown = f"skill is {skill[:40]!r}"
    if by_id:
        expected = (
            f"allowed with --by-id are the ids 0 to {codec.skill_count - 1:,}; leave it out where skills are names"
        )
    else:
        expected = (
            f"allowed are the {codec.skill_count:,} names of the model's skills, such as {codec.skills[0][:40]!r}; "
            "give --by-id where skills are ids"
        )
    return f"{shown}; {expected}, or --unknown-skill ignore to pass over such answers"
