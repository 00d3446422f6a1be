"""A whole cohort from a file: every answer of every learner predicted by the engine that serves, without a server.

In: CSV with the columns `learner`, `skill`, `correct`, in any order and among others. A learner's order is that of the
rows; learners may be interleaved, as a log by time is. Out: one row per answer, the learners in the order in which they
first appear. What is held at once is 4 bytes per answer and the learners in flight; predictions are written as learners
end.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.bundle import Bundle
from models.codec.interaction import InteractionCodec
from models.errors import CarouselError, UnknownSkill
from service.engine.core import EngineCore
from service.engine.sequence import FinishEvent, FinishReason, Ids, Sequence
from service.repository import open_runner
from service.tracing import trace_sequence, traced

COLUMNS = ("learner", "skill", "correct")
OUTPUT_COLUMNS = ("learner", "attempt", "skill", "correct", "probability")
CORRECT = {"0": 0, "1": 1, "false": 0, "true": 1}
LEARNERS_PER_ROW = 8
"""Learners in flight for each row of the engine: who has ended waits until an earlier, longer one is written."""


class _Writer(Protocol):
    def writerows(self, rows: Iterable[Iterable[Any]], /) -> None: ...


class CohortError(CarouselError):
    """The file cannot be traced."""


@dataclass(slots=True)
class Cohort:
    """Every learner's answers, compactly.

    An answer is `2 * skill + correct`; one at a skill that the model does not know is `-1 - (2 * place + correct)`, the
    place being that of its name in `unknown`.
    """

    learners: dict[str, array[int]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """How many."""
        return sum(map(len, self.learners.values()))


def read_cohort(source: Path, codec: InteractionCodec, *, by_id: bool = False, ignore_unknown: bool = False) -> Cohort:
    """The answers of a file.

    Args:
        source: CSV, UTF-8.
        codec: of the model.
        by_id: whether `skill` holds ids instead of names.
        ignore_unknown: keep answers at skills that the model does not know, unpredicted, instead of refusing the file.

    Raises:
        CohortError: with the line that is wrong.
        OSError: it cannot be read.
    """
    cohort, unknown = Cohort(), dict[str, int]()
    known: dict[str, int] = {}
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise CohortError(f"{source}: the header lacks {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
            places = [header.index(name) for name in COLUMNS]
            for row in reader:
                if not row:
                    continue  # an empty line
                where = f"{source}, line {reader.line_num:,}"
                if len(row) != len(header):
                    raise CohortError(f"{where}: {len(row)} fields; the header has {len(header)}")
                learner, skill, correct = (row[place].strip() for place in places)
                if not learner:
                    raise CohortError(f"{where}: learner is empty; allowed is any text")
                answer = CORRECT.get(correct.lower())
                if answer is None:
                    raise CohortError(f"{where}: correct is {correct[:40]!r}; allowed are 0, 1, false and true")
                place = known.get(skill)
                if place is None and skill not in unknown:
                    try:
                        place = known[skill] = codec.skill_id(_id(skill) if by_id else skill)
                    except UnknownSkill:
                        if not ignore_unknown:
                            raise CohortError(f"{where}: {_refusal(skill, codec, by_id)}") from None
                        unknown[skill] = len(unknown)
                code = 2 * place + answer if place is not None else -1 - (2 * unknown[skill] + answer)
                answers = cohort.learners.get(learner)
                if answers is None:
                    answers = cohort.learners[learner] = array("i")
                answers.append(code)
        except (csv.Error, UnicodeDecodeError) as error:
            raise CohortError(f"{source}, line {reader.line_num + 1:,}: is no CSV in UTF-8: {error}") from None
    cohort.unknown = list(unknown)
    if not cohort.learners:
        raise CohortError(f"{source}: there is no answer below the header; at least 1 is needed")
    return cohort


def _id(skill: str) -> int:
    """The id that a field spells; -1, which is nobody's, where it spells none."""
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


def trace_cohort(
    bundle: Bundle,
    cohort: Cohort,
    target: Path,
    *,
    max_rows: int,
    intra_op_threads: int,
    by_id: bool = False,
    on_answers: Callable[[int], object] = lambda _: None,
) -> None:
    """Predict every answer and write the predictions; the file appears when it is whole.

    Args:
        bundle: of task tracing.
        cohort: what `read_cohort` has read.
        target: where to write.
        max_rows: learners in one step.
        intra_op_threads: of onnxruntime.
        by_id: whether to write skills as ids.
        on_answers: called with how many answers a step has taken in.

    Raises:
        CohortError: the model failed on a learner.
        RunnerBroken, OSError
    """
    core = EngineCore(open_runner(bundle, intra_op_threads), max_rows)
    names = [str(skill) for skill in range(bundle.output_size)] if by_id else list(bundle.interaction_codec.skills)
    unfinished = target.with_name(target.name + ".part")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(OUTPUT_COLUMNS)
            for learner, answers, before in _predictions(core, cohort, on_answers):
                _write(writer, learner, answers, before, names, cohort.unknown)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _predictions(
    core: EngineCore, cohort: Cohort, on_answers: Callable[[int], object]
) -> Iterator[tuple[str, Ids, list[float | None]]]:
    """Each learner with the answers and P(correct) before each, None where there is none."""
    flying: deque[tuple[str, Ids, Sequence | None]] = deque()
    ends: dict[Sequence, FinishEvent] = {}
    waiting = iter(cohort.learners.items())
    while True:
        while len(flying) < LEARNERS_PER_ROW * core.scheduler.max_rows:
            learner, answers = next(waiting, (None, None))
            if learner is None or answers is None:
                break
            codes = np.array(answers, np.int64)
            known = codes[codes >= 0]
            sequence = trace_sequence(known) if len(known) else None
            if sequence is not None:
                core.add(sequence)
            flying.append((learner, codes, sequence))
        if not flying:
            return
        with np.errstate(all="ignore"):
            output = core.step()
        if output.report is not None:
            on_answers(output.report.prompt_tokens)
        ends.update(output.finished)
        while flying and (flying[0][2] is None or flying[0][2] in ends):
            learner, codes, sequence = flying.popleft()
            yield learner, codes, _before(learner, codes, sequence, None if sequence is None else ends.pop(sequence))


def _before(learner: str, codes: Ids, sequence: Sequence | None, end: FinishEvent | None) -> list[float | None]:
    before = np.full(len(codes), np.nan, np.float32)
    if sequence is not None and end is not None:
        if end.reason is FinishReason.FAILED:
            raise CohortError(f"learner {learner!r}: the model failed: {end.detail}")
        known = traced(sequence, end).before
        assert known is not None
        before[codes >= 0] = known
    return [None if probability != probability else probability for probability in before.tolist()]


def _write(
    writer: _Writer, learner: str, codes: Ids, before: list[float | None], names: list[str], unknown: list[str]
) -> None:
    rows = []
    for attempt, (code, probability) in enumerate(zip(codes.tolist(), before, strict=True), start=1):
        skill = names[code >> 1] if code >= 0 else unknown[(-1 - code) >> 1]
        correct = code & 1 if code >= 0 else (-1 - code) & 1
        # Nine digits tell every float32 from every other.
        rows.append((learner, attempt, skill, correct, "" if probability is None else f"{probability:.9g}"))
    writer.writerows(rows)
