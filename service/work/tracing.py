"""One learner's history through the engine: attempts in, P(correct) out. What the route and the command line share.

Axes: N attempts, S skills, K skills of a curve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import UnknownSkill
from carousel.service.engine.sequence import FinishEvent, Floats, Ids, Readout, Sequence, Snapshot
from carousel.service.errors import RequestError
from carousel.service.prefixes.prefixes import FROM_ZEROS, Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.memory import OUTPUT
from carousel.service.work.prompt import as_array

MAX_CURVE_VALUES = 250_000
"""Attempts times skills of one curve: about 5 MB of JSON."""


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of one request that the model knows, as it eats them.

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
        cached: attempts that were not eaten again.
    """

    before: Floats | None
    after: Floats
    curve: Floats | None
    outputs: Floats
    snapshot: Snapshot | None
    cached: int


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
    codec = model.bundle.interaction_codec
    known: dict[str | int, int] = {}
    ids, places, count = [], [], 0
    for place, (skill, correct) in enumerate(attempts):
        count += 1
        found = known.get(skill)
        if found is None:
            try:
                found = known[skill] = codec.skill_id(skill)
            except UnknownSkill as error:
                if not ignore_unknown:
                    raise RequestError("unknown_skill", _brief(f"{where}attempts.{place}: {error}")) from None
                continue
        ids.append(2 * found + correct)
        places.append(place)
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
    try:
        return np.array([codec.skill_id(skill) for skill in skills], np.int64)
    except UnknownSkill as error:
        raise RequestError("unknown_skill", _brief(f"{where}: {error}")) from None


def trace_sequence(
    ids: Ids,
    *,
    each: bool = True,
    recalled: Snapshot | None = None,
    beginning: Beginning = FROM_ZEROS,
    curve: Ids | None = None,
    last: int = 1,
    keep_state: bool = False,
) -> Sequence:
    """What the engine runs for a history: each attempt is eaten once.

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
    readout = Readout(targets, curve, last)
    return Sequence(
        ids,
        None,
        readout,
        snapshot=beginning.snapshot if recalled is None else recalled,
        keep_state=keep_state,
        looks=beginning.looks,
        eaten=beginning.length,
    )


def traced(sequence: Sequence, end: FinishEvent, cached: int = 0) -> Traced:
    """What came of it; `cached` attempts were not eaten again."""
    reading = end.reading
    assert reading is not None
    after = reading.outputs[-1]
    before = None
    if reading.values is not None:
        before = np.concatenate([_first(sequence), reading.values[:-1]])
    snapshot = None
    if end.snapshot is not None:
        snapshot = Snapshot({**end.snapshot.state, OUTPUT: after}, end.snapshot.pending)
    return Traced(before, after, reading.curve, reading.outputs, snapshot, cached)


def _first(sequence: Sequence) -> Floats:
    """P(correct) before the first attempt, which the memory gone on from may hold. <float32>[1]"""
    if sequence.snapshot is None or OUTPUT not in sequence.snapshot.state:
        return np.full(1, np.nan, np.float32)
    first: Floats = sequence.snapshot.state[OUTPUT][sequence.prompt[:1] >> 1].astype(np.float32)
    return first


def without_output(snapshot: Snapshot) -> Snapshot:
    """The memory with nothing but the states: the shortest that a token can be."""
    return Snapshot({name: row for name, row in snapshot.state.items() if name != OUTPUT}, snapshot.pending)


def _brief(message: str) -> str:
    return message if len(message) <= 400 else message[:400] + "..."
