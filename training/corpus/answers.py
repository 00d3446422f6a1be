"""Learners' answers to learn from and to be measured on.

A learner's history is an array of attempts, each `2 * skill + correct` (models/codec/interaction.py), oldest first.
The split is by learner, never by row: nobody is in both halves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from carousel.models.codec.interaction import COMBINED, InteractionCodec, combined_skill
from carousel.models.codec.spelling import one_name, spelling_remarks
from carousel.models.strict import CountOrNone, Strict
from carousel.training.corpus.files import Paths, read_text
from carousel.training.corpus.learners import SKILLS, simulate
from carousel.training.corpus.pykt import read_pykt
from carousel.training.corpus.rows import Columns, read_rows
from carousel.training.corpus.three_line import read_three_line
from carousel.training.corpus.transcript import Reading, Skills, Transcript
from carousel.training.errors import CorpusError

History = npt.NDArray[np.int64]

MAX_SKILL_NUMBER = 9_999
"""Where every skill of a corpus is a number up to this, numbers are kept as ids."""

MISSING = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "nil", "-", "--", "?", ".", "\\n"})
"""What other programs write where there is no value."""

TELLING_ATTEMPTS = 20
TELLING_MISTAKES = 3
"""Two learners hardly ever answer so often alike by chance, unless hardly ever wrong, or hardly ever right."""


class AnswerFiles(Strict):
    """Learners' answers: files, plain or .gz, or learners that are made up."""

    kind: Literal["three-line", "rows", "pykt", "generated"] = "three-line"
    train: Paths = Field(default=[])
    """One file or several, read as one; none for kind generated."""
    validation: Paths = Field(default=[])
    """Empty: `validation_fraction` of the training files' learners are held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    user: str = "user_id"
    """rows: the column that tells learners apart."""
    order: str = "order_id"
    """rows: the column, of numbers or of times as ISO 8601 writes them, that orders a learner's answers."""
    answer: str = ""
    """rows: the column that says which rows are one answer; empty where `ties` says it."""
    ties: Literal["one-answer", "file"] = "one-answer"
    """rows: what a learner's rows of one order are: one answer, or answers of their own in the file's order."""
    skill: str = "skill_name"
    """rows: the column of the skill."""
    correct: str = "correct"
    """rows: the column of 0 or 1."""
    skill_separator: str = ""
    """rows: what stands between the skills of one cell; empty where a cell holds one."""
    learners: Annotated[int, Field(ge=2)] = 4000
    """generated: how many."""
    seed: CountOrNone = 1
    """generated: of the learners and what happens to them."""

    @model_validator(mode="after")
    def _files_fit_kind(self) -> Self:
        if self.kind == "generated" and (self.train or self.validation):
            raise ValueError("kind generated reads no files; leave out train and validation")
        if self.kind != "generated" and not self.train:
            raise ValueError(f"kind {self.kind} takes files; set corpus.train to one path or a list of them")
        if self.answer and self.ties != "one-answer":
            raise ValueError("answer says which rows are one answer, and so does ties; set one of them")
        columns: dict[str, str] = {}
        for name in ("user", "order", "skill", "correct"):
            other = columns.setdefault(getattr(self, name), name)
            if other != name:
                raise ValueError(f"{name} and {other} are both column {getattr(self, name)!r}; each has one of its own")
        if columns.get(self.answer, "order") != "order":
            raise ValueError(f"answer and {columns[self.answer]} are both column {self.answer!r}; give another")
        return self


@dataclass(frozen=True, slots=True)
class AnswerCorpus:
    """The two groups of learners, and what identifies them."""

    codec: InteractionCodec
    train: Sequence[History]
    validation: Sequence[History]
    sha256: str
    """Of the unpacked training files: of the one file's bytes, or of the digests of several, one a line."""
    validation_sha256: str
    """Of the validation files; as `sha256` where the validation learners are some of the training files'."""
    remarks: tuple[str, ...] = ()
    """What was joined, left out or read in another spelling, for people."""


def read_answers(files: AnswerFiles, seed: int) -> AnswerCorpus:
    """Read or make the answers, and split them by learner.

    Args:
        files: the recipe's [corpus].
        seed: of the split.

    Raises:
        CorpusError: a file cannot be used, or there are too few learners.
    """
    if files.kind == "generated":
        return _generated(files, seed)
    train, digests, remarks = _read(files, files.train, "corpus.train")
    validation_digests = digests
    if files.validation:
        validation, validation_digests, more = _read(files, files.validation, "corpus.validation")
        remarks += more
        _refuse_shared(digests, validation_digests, train, validation)
    else:
        train, validation = _split(train, files.validation_fraction, seed)
    names, more = _skill_names([*train, *validation])
    try:
        codec = InteractionCodec(skill_names(names.values()))
    except ValueError as error:
        raise CorpusError(f"corpus: {error}") from None
    histories, held_out = ([_encode(codec, names, learner) for learner in part] for part in (train, validation))
    return AnswerCorpus(
        codec,
        histories,
        held_out,
        _digest(digests),
        _digest(validation_digests),
        (*remarks, *more, *_known_by_heart(histories, held_out)),
    )


def skill_names(seen: Iterable[str]) -> list[str]:
    """The codec's list of skills for the names that a corpus holds.

    Where all are whole numbers, they are kept as ids: number i stands at position i, also where some numbers between
    were never seen. (Then a client's id, a client's name and the corpus's number are one and the same.) Otherwise
    names are sorted.
    """
    names = set(seen)
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names):
        largest = max(map(int, names), default=0)
        if largest <= MAX_SKILL_NUMBER:
            return [str(number) for number in range(largest + 1)]
    return sorted(names)


def _read(files: AnswerFiles, paths: Sequence[str], key: str) -> tuple[list[Transcript], dict[str, str], list[str]]:
    """The learners of some files, the files by digest, and what is to be said of them."""
    texts: list[tuple[str, str]] = []
    digests: dict[str, str] = {}
    for path in paths:
        text, digest = read_text(Path(path), key)
        if digest in digests:
            raise CorpusError(f"{key}: {path} holds what {digests[digest]} holds, byte for byte; list it once")
        texts.append((path, text))
        digests[digest] = path
    match files.kind:
        case "three-line":
            reading = Reading([learner for path, text in texts for learner in read_three_line(text, path)])
        case "pykt":
            reading = read_pykt(texts)
        case _:
            reading = read_rows(
                texts,
                Columns(
                    files.user,
                    files.order,
                    files.skill,
                    files.correct,
                    files.skill_separator,
                    files.answer,
                    files.ties,
                ),
            )
    if not reading.learners:
        raise CorpusError(f"{key}: {', '.join(paths)}: holds no learner with an answer")
    return reading.learners, digests, [f"{key}: {remark}" for remark in reading.remarks]


def _digest(digests: Iterable[str]) -> str:
    """Of one file, its own; of several, that of their digests, one a line."""
    several = list(digests)
    return several[0] if len(several) == 1 else hashlib.sha256("\n".join(several).encode()).hexdigest()


def _refuse_shared(
    digests: dict[str, str],
    validation_digests: dict[str, str],
    train: Sequence[Transcript],
    validation: Sequence[Transcript],
) -> None:
    """See that nobody is in both halves."""
    for digest in digests.keys() & validation_digests.keys():
        raise CorpusError(
            f"corpus.validation: {validation_digests[digest]} holds what {digests[digest]} of corpus.train holds, byte "
            "for byte; the split is by learner"
        )
    shared = {learner.name for learner in train if learner.name} & {learner.name for learner in validation}
    if shared:
        raise CorpusError(
            f"learner {min(shared)!r} is both in corpus.train and in corpus.validation; the split is by learner"
        )


def _skill_names(learners: Sequence[Transcript]) -> tuple[dict[Skills, str], list[str]]:
    """What the skills of an answer are called together, and what is to be said of it."""
    taken = Counter(skills for learner in learners for skills in learner.skills)
    read_as = one_name({name for skills in taken for name in skills})
    names = {skills: combined_skill(read_as[name] for name in skills) for skills in taken}
    remarks = spelling_remarks("skills", read_as)
    missing = sorted(name for name in read_as.values() if name.lower() in MISSING)
    if missing:
        count = sum(
            count for skills, count in taken.items() if not {read_as[name] for name in skills}.isdisjoint(missing)
        )
        called = " or ".join(map(repr, missing[:3])) + (" or another such" if len(missing) > 3 else "")
        remarks.append(
            f"{count:,} answers are at a skill called {called}, kept as a name; where there is none, "
            "leave the cell empty"
        )
    combined = {name for skills, name in names.items() if len(skills) > 1}
    for name in sorted(name for name in set(read_as.values()) & combined if COMBINED in name)[:1]:
        remarks.append(f"skill {name!r} is a name, and what answers that took both are called; they are one skill here")
    return names, [f"corpus: {remark}" for remark in remarks]


def _known_by_heart(train: Sequence[History], validation: Sequence[History]) -> list[str]:
    """Whether validation learners answered, attempt for attempt, what a training learner did: the same one, perhaps."""
    telling, others = ([history.tobytes() for history in part if _tells(history)] for part in (validation, train))
    count = sum(map(set(others).__contains__, telling))
    if not count:
        return []
    return [
        f"corpus: {count:,} of the {len(validation):,} validation learners have a history of {TELLING_ATTEMPTS} "
        "attempts or more that a training learner has too, attempt for attempt; who stands there twice is in both"
    ]


def _tells(history: History) -> bool:
    right = int((history & 1).sum())
    return len(history) >= TELLING_ATTEMPTS and TELLING_MISTAKES <= right <= len(history) - TELLING_MISTAKES


def _split(learners: list[Transcript], fraction: float, seed: int) -> tuple[list[Transcript], list[Transcript]]:
    """Training and validation learners, each group in the order of the files."""
    held_out = max(1, round(len(learners) * fraction))
    if held_out >= len(learners):
        raise CorpusError(
            f"the corpus has learners: {len(learners)}; at least one to learn from and one to be measured on "
            "are needed: give more, or lower corpus.validation_fraction"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(learners))[:held_out].tolist())
    return (
        [learner for index, learner in enumerate(learners) if index not in chosen],
        [learner for index, learner in enumerate(learners) if index in chosen],
    )


def _encode(codec: InteractionCodec, names: dict[Skills, str], learner: Transcript) -> History:
    attempts = zip(learner.skills, learner.correct, strict=True)
    return np.array([codec.encode(names[skills], correct) for skills, correct in attempts], np.int64)


def _generated(files: AnswerFiles, seed: int) -> AnswerCorpus:
    cohort = simulate(files.learners, files.seed)
    digest = hashlib.sha256(np.concatenate(cohort.histories).astype("<i8").tobytes()).hexdigest()
    numbered = [Transcript(str(index), [], []) for index in range(files.learners)]
    train, validation = _split(numbered, files.validation_fraction, seed)
    return AnswerCorpus(
        InteractionCodec(SKILLS),
        [cohort.histories[int(learner.name)] for learner in train],
        [cohort.histories[int(learner.name)] for learner in validation],
        digest,
        digest,
    )
