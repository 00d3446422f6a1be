"""pyKT's preprocessed files (Liu et al. 2022): a row per learner, or per piece of one, with comma-separated lists.

    fold,uid,concepts,responses
    0,16894,"19,19,7_12","0,1,0"

A concept `7_12` is one answer that took two skills. Files in which pyKT has spread such an answer over several entries
mark those after the first in the column `is_repeat`. Either is one attempt at a combined skill (see rows.py). An entry
of -1 fills a piece up to its fixed length and is no answer. The rows of one `uid` are one learner, in the file's order.

Pieces may overlap: a `_window_` file repeats before each answer the ones that go before it, and marks these copies with
-1 in `selectmasks`. What it marks so is passed over, or a copy would foretell its original. A file whose pieces overlap
unmarked is refused, and so are `_question_` files, which write an answer anew for each of its skills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from carousel.models.codec.spelling import one_id, spelling_remarks
from carousel.training.corpus.tables import table
from carousel.training.corpus.transcript import Reading, Transcript, read_correct, skill_set
from carousel.training.errors import CorpusError

PADDING = ("-1", "-1.0")
GUARDS = ("timestamps", "cidxs")
"""Not read but to find copies by."""
LISTS = ("concepts", "responses", "is_repeat", "selectmasks", *GUARDS)
MARKS = ("is_repeat", "selectmasks")
"""What an entry is, besides an answer: a file that says so of some says so of all."""
QUESTION_COLUMNS = ("qidxs", "rest", "orirow")
"""Only `_question_` files have them."""

_YES_OR_NO = {"0": False, "0.0": False, "1": True, "1.0": True, "-1": False, "-1.0": False}
"""is_repeat; -1 where it fills up."""
SMALLEST_OVERLAP = 3
"""Entries alike at the edges of two pieces, and half a piece at least, that are taken for copies."""

TELLING_PIECE = 4
"""Entries of a piece that, all alike, are taken for a copy of an earlier one of the same learner."""

_MARKS = {"1": True, "1.0": True, "-1": False, "-1.0": False}

Entry = dict[str, str]


@dataclass(slots=True)
class _Learner:
    skills: list[set[str]] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    piece: list[tuple[str, str]] = field(default_factory=list)
    """Concept and response of each entry of the last row."""
    pieces: set[int] = field(default_factory=set)
    """Of each row that may be no copy, its entries' hash."""
    time: float | None = None
    """Of the last entry read."""
    seen: set[str] = field(default_factory=set)
    """The `cidxs`, of which each answer has its own."""


class _Pieces:
    """The rows of some files, as they come."""

    def __init__(self) -> None:
        self._learners: dict[str, _Learner] = {}
        self._uids: dict[str, str] = {}
        self._joined = self._unselected = 0

    def add(self, row: dict[str, str], where: str) -> None:
        uid = self._uids.setdefault(row["uid"], one_id(row["uid"]))
        if not uid:
            raise CorpusError(f"{where}: uid is empty; allowed is what tells learners apart")
        entries = _entries(row, where)
        learner = self._learners.setdefault(uid, _Learner())
        selected = [entry for entry in entries if _mark(entry, "selectmasks", _MARKS, "1", where)]
        self._unselected += len(entries) - len(selected)
        if len(selected) == len(entries):
            _refuse_overlap(learner, entries, uid, where)
        learner.piece = [(entry["concepts"], entry["responses"]) for entry in entries]
        for entry in selected:
            self._take(learner, entry, uid, where)

    def _take(self, learner: _Learner, entry: Entry, uid: str, where: str) -> None:
        concept = entry["concepts"]
        parts = {part.strip() for part in concept.split("_")}
        if not parts.isdisjoint(("", *PADDING)):
            raise CorpusError(f"{where}: a concept is {concept!r}; allowed is an id, or several joined by '_'")
        right = read_correct(entry["responses"], where)
        repeated = _mark(entry, "is_repeat", _YES_OR_NO, "0", where) and bool(learner.skills)
        index = entry.get("cidxs", "")
        if index and index in learner.seen:
            raise CorpusError(
                f"{where}: learner {uid!r} has the answer of cidxs {index} a second time; allowed is each answer once"
            )
        learner.seen |= {index} if index else set()
        if not repeated:
            learner.skills.append(parts)
            learner.correct.append(right)
            return
        if right != learner.correct[-1]:
            raise CorpusError(f"{where}: a repeated entry is right where its answer is wrong, or the reverse")
        learner.skills[-1] |= parts
        self._joined += 1

    def reading(self) -> Reading:
        """What has been added."""
        learners = [
            Transcript(uid, [skill_set(parts) for parts in learner.skills], learner.correct)
            for uid, learner in self._learners.items()
            if learner.skills
        ]
        answers = sum(len(learner.correct) for learner in learners)
        several = sum(len(parts) > 1 for learner in self._learners.values() for parts in learner.skills)
        remarks = [f"{answers:,} answers; {self._joined:,} entries were joined to the one that they repeat (is_repeat)"]
        if several:
            remarks.append(f"{several:,} of them took several skills (7_12), and are at one that is called after all")
        if self._unselected:
            remarks.append(f"{self._unselected:,} entries that selectmasks marks -1 were passed over")
        return Reading(learners, (*remarks, *spelling_remarks("learners", self._uids)))


def read_pykt(texts: Sequence[tuple[str, str]]) -> Reading:
    """The learners of some files.

    Args:
        texts: (file, content) each.

    Raises:
        CorpusError: naming file and line.
    """
    pieces = _Pieces()
    for file, text in texts:
        for where, row in table(file, text, ["uid", "concepts", "responses"], LISTS):
            for column in QUESTION_COLUMNS:
                if column in row:
                    raise CorpusError(
                        f"{file}: has the column {column!r}, so it is pyKT's for questions, which writes an answer "
                        "once for each of its skills; give the file of sequences (test_sequences.csv) instead"
                    )
            pieces.add(row, where)
    return pieces.reading()


def _entries(row: dict[str, str], where: str) -> list[Entry]:
    """The entries of a row that are not there to fill it up."""
    lists = {name: [cell.strip() for cell in row[name].split(",")] for name in LISTS if row.get(name, "").strip()}
    if not {"concepts", "responses"} & lists.keys():
        return []
    lists = {"concepts": [], "responses": [], **lists}
    for marks in MARKS:
        if marks in row and marks not in lists:
            raise CorpusError(f"{where}: {marks} is empty; allowed is a mark for each entry, as in the other rows")
    for guard in GUARDS:
        if len(lists.get(guard, [])) != len(lists["concepts"]):
            lists.pop(guard, None)  # "NA", where a data set has none
    if len({len(cells) for cells in lists.values()}) > 1:
        counts = ", ".join(f"{name} {len(cells):,}" for name, cells in lists.items())
        raise CorpusError(f"{where}: lists of one row differ in length ({counts})")
    columns = zip(*lists.values(), strict=True)
    entries = [dict(zip(lists, cells, strict=True)) for cells in columns]
    return [entry for entry in entries if entry["concepts"] not in PADDING]


def _mark(entry: Entry, column: str, values: dict[str, bool], default: str, where: str) -> bool:
    cell = entry.get(column, default)
    if cell not in values:
        allowed = ", ".join(key for key in values if "." not in key)
        raise CorpusError(f"{where}: {column} holds {cell!r}; allowed are {allowed}")
    return values[cell]


def _refuse_overlap(learner: _Learner, entries: list[Entry], uid: str, where: str) -> None:
    """See that a piece without marked copies has none: that it goes not back in time, nor repeats what went before."""
    piece = [(entry["concepts"], entry["responses"]) for entry in entries]
    sizes = range(max(SMALLEST_OVERLAP, -(-len(piece) // 2)), len(piece) + 1)
    shifted = any(piece[:size] == learner.piece[-size:] and len(set(piece[:size])) > 1 for size in sizes)
    whole = hash(tuple(piece))
    again = whole in learner.pieces and len(piece) >= TELLING_PIECE and len(set(piece)) > 1
    learner.pieces.add(whole)
    times = [_seconds(entry.get("timestamps", "")) for entry in entries]
    known = [time for time in times if time is not None]
    back = learner.time is not None and bool(known) and known[0] < learner.time
    if shifted or back or again:
        raise CorpusError(
            f"{where}: this piece of learner {uid!r} overlaps one before, and no selectmasks says what of it is a "
            "copy; give the file of sequences that do not overlap (train_valid_sequences.csv)"
        )
    learner.time = known[-1] if known else learner.time


def _seconds(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
