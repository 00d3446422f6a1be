"""A cohort: every answer of every learner predicted by the engine that serves, without a server.

In: what `cohort_file` reads. Out: CSV, one row per answer, the learners in the order in which they first appear. What
is held at once is 4 bytes per answer and the learners in flight; predictions are written as learners end.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.output_file import open_output
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import FinishReason, Ids
from carousel.service.engine.port import Ended, Request
from carousel.service.engine.probe import check_rows
from carousel.service.served.opening import open_runner
from carousel.service.tasks.tracing.cohort_file import Cohort, CohortError
from carousel.service.tasks.tracing.histories import trace_request, traced

OUTPUT_COLUMNS = ("learner", "attempt", "skill", "correct", "probability")
LEARNERS_PER_ROW = 8
"""Learners in flight for each row of the engine: who has ended waits until an earlier, longer one is written."""


class _Writer(Protocol):
    def writerows(self, rows: Iterable[Iterable[Any]], /) -> None: ...


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
    """Predict every answer and write the predictions; a regular file appears when it is whole.

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
        OutputError: the target is a directory, or has none to lie in.
        RunnerBroken, OSError
    """
    core = EngineCore(check_rows(open_runner(bundle, intra_op_threads), max_rows).runner, max_rows)
    skills = bundle.codec(InteractionCodec).skills
    names = [str(skill) for skill in range(len(skills))] if by_id else list(skills)
    with open_output(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(OUTPUT_COLUMNS)
        for learner, answers, before in _predictions(core, cohort, on_answers):
            _write(writer, learner, answers, before, names, cohort.unknown)
        text.detach()  # which flushes it; the file is not ours to close


def _predictions(
    core: EngineCore, cohort: Cohort, on_answers: Callable[[int], object]
) -> Iterator[tuple[str, Ids, list[float | None]]]:
    """Each learner with the answers and P(correct) before each, None where there is none."""
    flying: deque[tuple[str, Ids, int, Request | None]] = deque()
    ends: dict[int, Ended] = {}
    waiting = zip(count(), cohort.learners.items())
    while True:
        while len(flying) < LEARNERS_PER_ROW * core.scheduler.max_rows:
            following = next(waiting, None)
            if following is None:
                break
            id, (learner, answers) = following
            codes = np.array(answers, np.int64)
            known = codes[codes >= 0]
            request = trace_request(known) if len(known) else None
            if request is not None:
                core.add(id, request)
            flying.append((learner, codes, id, request))
        if not flying:
            return
        with np.errstate(all="ignore"):
            output = core.step()
        if output.report is not None:
            on_answers(output.report.prompt_tokens)
        ends.update(output.finished)
        while flying and (flying[0][3] is None or flying[0][2] in ends):
            learner, codes, id, request = flying.popleft()
            yield learner, codes, _before(learner, codes, request, ends.pop(id, None))


def _before(learner: str, codes: Ids, request: Request | None, end: Ended | None) -> list[float | None]:
    before = np.full(len(codes), np.nan, np.float32)
    if request is not None and end is not None:
        if end.reason is FinishReason.FAILED:
            raise CohortError(f"learner {learner!r}: the model failed: {end.detail}")
        known = traced(request, end).before
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
