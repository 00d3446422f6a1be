"""One learner's history through the engine: attempts in, P(correct) out. What the route and the command line share.

Axes: N attempts, S skills, K skills of a curve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import UnknownSkill
from carousel.service.engine.parameters import Floats, Ids, Reading, ReadParameters
from carousel.service.engine.port import Ended, Request, Snapshot
from carousel.service.errors import RequestError
from carousel.service.prefixes.prefixes import FROM_ZEROS, Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.memory import OUTPUT
from carousel.service.work.prompt import as_array

MAX_TOLD, MAX_LOOKED_AT = 8, 1000
"""Unknown skills of one list that are told, and up to which they are counted."""

MAX_SHOWN = 100
"""Characters of one of them."""

MAX_CURVE_VALUES = 250_000
"""Attempts times skills of one curve: about 5 MB of JSON."""


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of one request that the model knows, as it consumes them.

    Args:
        ids: `2 * skill + correct` each. <int64>[N], N at least 1
        places: where each stood among the attempts of the request. <int64>[N]
        count: attempts of the request, those at unknown skills included.
    """

    ids: Ids
    places: Ids
    count: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What the model says of a history.

    Args:
        before: P(correct) of each attempt as it stood before it, NaN where there was nothing to predict it from; None
            where it was not asked for. <float32>[N]
        after: P(correct) of the next attempt at every skill. <float32>[S]
        curve: P(correct) after each attempt at the skills asked for. <float32>[N, K]
        outputs: P(correct) at every skill after each of the last attempts, oldest first. <float32>[at most N, S]
        snapshot: the memory, its OUTPUT included; None where it was not asked for.
        cached: attempts that were not consumed again.
    """

    before: Floats | None
    after: Floats
    curve: Floats | None
    outputs: Floats
    snapshot: Snapshot | None
    cached: int


class _Known:
    """The skills of one list: their ids, and which of them a model does not know."""

    def __init__(self, codec: InteractionCodec) -> None:
        self._codec = codec
        self._ids: dict[str | int, int | None] = {}
        self._told: list[str] = []
        self._known = ""
        self.missed = 0

    def skill_id(self, skill: str | int) -> int | None:
        """The id of a skill, None where there is none."""
        found = self._ids.get(skill, -1)
        if found == -1:
            try:
                found = self._codec.skill_id(skill)
            except UnknownSkill as error:
                found, self._known = None, error.known
            self._ids[skill] = found
        return found

    def miss(self, where: str, skill: str | int) -> None:
        """Note a skill that is not known."""
        self.missed += 1
        if len(self._told) < MAX_TOLD:
            shown = repr(skill) if len(repr(skill)) <= MAX_SHOWN else f"{repr(skill)[:MAX_SHOWN]}..."
            self._told.append(f"{where}: there is no skill {shown}")

    def refuse_missed(self) -> None:
        """Raise RequestError where there are any."""
        if not self.missed:
            return
        more = self.missed - len(self._told)
        least = "at least " if self.missed >= MAX_LOOKED_AT else ""
        told = "; ".join(self._told) + (f" (and {least}{more:,} more)" if more else "")
        raise RequestError("unknown_skill", f"{told}; {self._known}")


def encode_history(
    model: ServedModel, attempts: Iterable[tuple[str | int, bool]], *, ignore_unknown: bool, where: str = ""
) -> History:
    """The ids of a learner's attempts.

    Args:
        model: of task tracing.
        attempts: (name or id of the skill, correct).
        ignore_unknown: leave attempts at skills out that the model does not know, instead of refusing.
        where: what to call the learner in a message: `learners.3.` or nothing.

    Raises:
        RequestError: unknown_skill, no_attempts or prompt_too_long.
    """
    known = _Known(model.bundle.codec(InteractionCodec))
    ids, places, count = [], [], 0
    for place, (skill, correct) in enumerate(attempts):
        count += 1
        found = known.skill_id(skill)
        if found is None:
            if not ignore_unknown:
                known.miss(f"{where}attempts.{place}", skill)
                if known.missed >= MAX_LOOKED_AT:
                    break
            continue
        ids.append(2 * found + correct)
        places.append(place)
    known.refuse_missed()
    if not ids:
        seen = (
            f"none of the {count:,} attempts is at a skill that {model.name} knows" if count else "there is no attempt"
        )
        raise RequestError("no_attempts", f"{where}attempts: {seen}; at least 1 is needed")
    longest = model.bundle.manifest.limits.max_prompt_tokens
    if count > longest:
        raise RequestError(
            "prompt_too_long",
            f"{where}attempts: the history is {count:,} attempts; {model.name} takes 1 to {longest:,} "
            "(manifest limits.max_prompt_tokens); send it in parts, with a session",
        )
    return History(as_array(ids), as_array(places), count)


def skill_ids(codec: InteractionCodec, skills: Iterable[str | int], where: str) -> Ids:
    """The ids of skills that were asked for.

    Raises:
        RequestError: unknown_skill.
    """
    known = _Known(codec)
    ids = []
    for place, skill in enumerate(skills):
        found = known.skill_id(skill)
        if found is None:
            known.miss(f"{where}.{place}", skill)
        else:
            ids.append(found)
    known.refuse_missed()
    return np.array(ids, np.int64)


def trace_request(
    ids: Ids,
    *,
    each: bool = True,
    recalled: Snapshot | None = None,
    beginning: Beginning = FROM_ZEROS,
    curve: Ids | None = None,
    last: int = 1,
    keep_state: bool = False,
) -> Request:
    """What the engine runs for a history: each attempt is consumed once.

    Args:
        ids: <int64>[N]
        each: whether P(correct) before each attempt is wanted. That and a curve cost a step an attempt; what only
            needs the last outputs is prefilled.
        recalled: the memory to go on from.
        beginning: what is known of the history, for who wants the last output alone and has no memory to go on from.
        curve: skills to read after each attempt. <int64>[K]
        last: how many of the last outputs are wanted whole.
        keep_state: whether the memory is wanted.
    """
    # After the last attempt there is no next one: any column will do.
    targets = np.append(ids[1:] >> 1, 0) if each else None
    return Request(
        ids,
        ReadParameters(targets, curve, last),
        snapshot=beginning.snapshot if recalled is None else recalled,
        keep_state=keep_state,
        checkpoints=beginning.checkpoints,
        consumed=beginning.length,
    )


def traced(request: Request, end: Ended, cached: int = 0) -> Traced:
    """What came of it; `cached` attempts were not consumed again."""
    reading = end.result
    assert isinstance(reading, Reading)
    after = reading.outputs[-1]
    before = None
    if reading.values is not None:
        before = np.concatenate([_first(request), reading.values[:-1]])
    snapshot = None
    if end.snapshot is not None:
        snapshot = Snapshot({**end.snapshot.state, OUTPUT: after}, end.snapshot.pending)
    return Traced(before, after, reading.curve, reading.outputs, snapshot, cached)


def _first(request: Request) -> Floats:
    """P(correct) before the first attempt, which the memory gone on from may hold. <float32>[1]"""
    if request.snapshot is None or OUTPUT not in request.snapshot.state:
        return np.full(1, np.nan, np.float32)
    first: Floats = request.snapshot.state[OUTPUT][request.prompt[:1] >> 1].astype(np.float32)
    return first


def without_output(snapshot: Snapshot) -> Snapshot:
    """The memory with nothing but the states: the shortest that a token can be."""
    return Snapshot({name: row for name, row in snapshot.state.items() if name != OUTPUT}, snapshot.pending)
