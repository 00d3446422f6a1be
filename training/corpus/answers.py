"""Learners' answers to learn from and to be measured on.

A learner's history is an array of attempts, each `2 * skill + correct` (models/codec/interaction.py), oldest first.
The split is by learner, never by row: nobody is in both halves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.codec.interaction import InteractionCodec
from training.corpus.files import read_text
from training.corpus.learners import SKILLS, simulate
from training.corpus.pykt import read_pykt
from training.corpus.rows import Columns, read_rows
from training.corpus.three_line import read_three_line
from training.corpus.transcript import Transcript
from training.errors import CorpusError
from training.sections import AnswerFiles

History = npt.NDArray[np.int64]

MAX_SKILL_NUMBER = 9_999
"""Where every skill of a corpus is a number up to this, numbers are kept as ids."""


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
    """What was left out and why, for people."""


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
    train, digest, remarks = _read(files, files.train, "corpus.train")
    if files.validation:
        validation, validation_digest, more = _read(files, files.validation, "corpus.validation")
        remarks += more
        shared = {learner.name for learner in train if learner.name} & {learner.name for learner in validation}
        if shared:
            raise CorpusError(
                f"learner {min(shared)!r} is both in corpus.train and in corpus.validation; the split is by learner"
            )
    else:
        train, validation = _split(train, files.validation_fraction, seed)
        validation_digest = digest
    try:
        codec = InteractionCodec(skill_names(skill for learner in [*train, *validation] for skill in learner.skills))
    except ValueError as error:
        raise CorpusError(f"corpus: {error}") from None
    return AnswerCorpus(
        codec,
        [_encode(codec, learner) for learner in train],
        [_encode(codec, learner) for learner in validation],
        digest,
        validation_digest,
        tuple(remarks),
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


def _read(files: AnswerFiles, paths: Sequence[str], key: str) -> tuple[list[Transcript], str, list[str]]:
    texts, digests = [], []
    for path in paths:
        text, digest = read_text(Path(path), key)
        texts.append((path, text))
        digests.append(digest)
    remarks: list[str] = []
    match files.kind:
        case "three-line":
            learners = [learner for path, text in texts for learner in read_three_line(text, path)]
        case "pykt":
            learners = read_pykt(texts)
        case _:
            columns = Columns(files.user, files.order, files.skill, files.correct, files.skill_separator)
            learners, skipped = read_rows(texts, columns)
            if skipped:
                remarks.append(f"{key}: {skipped:,} rows without a skill were left out")
    if not learners:
        raise CorpusError(f"{key}: {', '.join(paths)}: holds no learner with an answer")
    if len(digests) == 1:
        return learners, digests[0], remarks
    return learners, hashlib.sha256("\n".join(digests).encode()).hexdigest(), remarks


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


def _encode(codec: InteractionCodec, learner: Transcript) -> History:
    attempts = zip(learner.skills, learner.correct, strict=True)
    return np.array([codec.encode(skill, correct) for skill, correct in attempts], np.int64)


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
