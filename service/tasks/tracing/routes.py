"""Knowledge tracing: what a learner knows after each answer."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.models.codec.interaction import InteractionCodec
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.routes.responses import SvgResponse
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.api.wire.slices import LARGE_ANSWER
from carousel.service.engine.parameters import Ids
from carousel.service.engine.port import Place
from carousel.service.errors import RequestError
from carousel.service.pictures.mastery import mastery_svg
from carousel.service.prefixes.prefixes import FROM_ZEROS
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.sessions import Change, SessionView
from carousel.service.tasks.tracing.histories import (
    MAX_CURVE_VALUES,
    History,
    Traced,
    encode_history,
    skill_ids,
    trace_request,
    traced,
    without_output,
)
from carousel.service.tasks.tracing.messages import (
    LearnersRequest,
    LearnersResponse,
    TraceBody,
    TraceFields,
    TraceResponse,
)
from carousel.service.tasks.tracing.trail import marks_of, read_marks
from carousel.service.work.generation import admit_many, run_to_end
from carousel.service.work.memories import MAX_MARKS, Memories, Recall
from carousel.service.work.turns import in_turns

LONG_HISTORY = 256
"""Attempts from which on they are looked at on a thread, not to hold the event loop up."""

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

router = APIRouter(prefix="/v1/models/{model}", tags=["tracing"], route_class=JsonRoute)


@router.post(
    "/trace",
    summary="What learners know after each answer",
    responses=ERRORS,
    response_model=TraceResponse | LearnersResponse,
)
async def trace(request: Request, model: str, body: TraceBody) -> Response:
    """P(correct) of the next attempt at every skill; of one learner, or of many in `learners`, all or none."""
    served = find_model(request, model, "tracing")
    work = _trace(served, context_of(request).memories, body)
    return Response(await while_connected(request, work), media_type="application/json")


@router.get(
    "/trace/{session}/mastery.svg",
    summary="A picture of a session",
    operation_id="mastery_picture",
    responses=ERRORS,
    response_class=SvgResponse,
)
async def mastery(request: Request, model: str, session: str) -> Response:
    """Skills down, attempts across, colour for P(correct), each answer marked; the last 256 attempts."""
    served = find_model(request, model, "tracing")
    view = await context_of(request).memories.look(served.name, session, trail=True, fits=served.identity)
    picture = await asyncio.to_thread(_draw, served, session, view)
    headers = {"cache-control": "no-store", "content-security-policy": "default-src 'none'"}
    return SvgResponse(picture, headers=headers)


def _draw(model: ServedModel, session: str, view: SessionView) -> str:
    ids, after = read_marks(view.trail)
    first, last = view.memory.steps - len(ids) + 1, view.memory.steps
    shown = f"attempts {first:,} to {last:,}" if len(ids) else "no attempt is kept"
    title = f"{model.name} version {model.bundle.version} · session {session} · {shown}"
    return mastery_svg(model.bundle.codec(InteractionCodec).skills, ids, after, title=title, first_attempt=first)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One learner's request, checked."""

    fields: TraceFields
    history: History
    skills: Ids | None
    curve: Ids | None


async def _trace(model: ServedModel, memories: Memories, body: TraceBody) -> bytes:
    many = isinstance(body, LearnersRequest)
    learners: Sequence[TraceFields] = body.learners if isinstance(body, LearnersRequest) else [body]
    with ExitStack() as places:
        # As many rows as there are at most: a large request takes turns instead of everybody's place.
        wanted = min(len(learners), model.engine.describe().max_rows)
        admissions = admit_many(places, model, wanted, body.urgency)
        if sum(len(fields.attempts) for fields in learners) < LONG_HISTORY:
            asked = _check_all(model, learners, many)
        else:
            asked = await asyncio.to_thread(_check_all, model, learners, many)
        async with AsyncExitStack() as held:
            recalls = [
                await held.enter_async_context(memories.recall(model.identity, one.fields.memory)) for one in asked
            ]
            queued: set[Place] = set()

            async def run(place: Place, index: int) -> Traced:
                result = await _run(model, place, asked[index], recalls[index])
                if place not in queued:  # who comes second in a place has not queued
                    queued.add(place)
                    model.metrics.queued(place)
                return result

            results = await in_turns(admissions, len(asked), run)
            ends = (_note(*each) for each in zip(asked, recalls, results, strict=True))
            await memories.sessions.commit(*(change for change in ends if change is not None))
        told = [recall.told for recall in recalls]
        if sum(map(_values, asked, results)) < LARGE_ANSWER:
            return _json(model, asked, results, told, many)
        return await asyncio.to_thread(_json, model, asked, results, told, many)


def _check_all(model: ServedModel, learners: Sequence[TraceFields], many: bool) -> list[_Asked]:
    asked = [_check(model, fields, f"learners.{place}." if many else "") for place, fields in enumerate(learners)]
    _check_sessions(learners)
    return asked


def _check(model: ServedModel, fields: TraceFields, where: str) -> _Asked:
    """Everything about a learner that can be refused without a memory."""
    codec = model.bundle.codec(InteractionCodec)
    attempts = ((attempt["skill"], attempt["correct"]) for attempt in fields.attempts)
    history = encode_history(model, attempts, ignore_unknown=fields.unknown_skill == "ignore", where=where)
    skills = None if fields.skills is None else skill_ids(codec, fields.skills, f"{where}skills")
    curve = None if fields.curve is None else skill_ids(codec, fields.curve, f"{where}curve")
    if curve is not None and len(curve) * len(history.ids) > MAX_CURVE_VALUES:
        raise RequestError(
            "invalid_request",
            f"{where}curve: {len(curve):,} skills after each of {len(history.ids):,} attempts are "
            f"{len(curve) * len(history.ids):,} values; allowed are {MAX_CURVE_VALUES:,}",
        )
    return _Asked(fields, history, skills, curve)


def _check_sessions(learners: Sequence[TraceFields]) -> None:
    places: dict[str, int] = {}
    for place, learner in enumerate(learners):
        if learner.session is None:
            continue
        first = places.setdefault(learner.session, place)
        if first != place:
            raise RequestError(
                "invalid_request", f"learners.{place}.session: is that of learners.{first}; each session may come once"
            )


async def _run(model: ServedModel, place: Place, one: _Asked, recall: Recall) -> Traced:
    """One learner's history."""
    wants_marks = recall.choice.session is not None and len(one.history.ids) > 1
    more = wants_marks or one.fields.each or one.curve is not None  # than the last outputs
    beginning = FROM_ZEROS
    if recall.snapshot is None and not more:
        beginning = model.prefixes.begin(one.history.ids, one.fields.cache_salt)
    wanted = trace_request(
        one.history.ids,
        each=one.fields.each,
        recalled=recall.snapshot,
        beginning=beginning,
        curve=one.curve,
        last=MAX_MARKS if wants_marks else 1,
        keep_state=recall.choice.keeps,
    )
    end = await run_to_end(model, place, wanted)
    result = traced(wanted, end, beginning.length)
    beginning.keep(end.checkpoints)
    return result


def _note(one: _Asked, recall: Recall, result: Traced) -> Change | None:
    if result.snapshot is None:
        return None
    marks = marks_of(one.history.ids, result.outputs) if recall.choice.session is not None else []
    # A token holds what the model said last only for who asks for `each`: it is as long as the states.
    signed = result.snapshot if one.fields.each else without_output(result.snapshot)
    return recall.note(result.snapshot, consumed=len(one.history.ids), marks=marks, signed=signed)


def _json(
    model: ServedModel, asked: list[_Asked], results: list[Traced], told: list[dict[str, str]], many: bool
) -> bytes:
    """The answer. Written by hand: an answer of 100,000 attempts need not be validated on its way out.

    In ASCII: a name that a client sent may hold half of a surrogate pair, which UTF-8 cannot express.
    """
    head = f'{{"model":{_dumps(model.name)},"version":{model.bundle.version}'
    learners = [_answer(model, *each) for each in zip(asked, results, told, strict=True)]
    text = f'{head},"learners":[{",".join(learners)}]}}' if many else f"{head},{learners[0][1:]}"
    return text.encode()


def _answer(model: ServedModel, one: _Asked, result: Traced, told: dict[str, str]) -> str:
    """One LearnerAnswer. The predictions are most of a short answer's cost, hence the template.

    What is long is joined piece by piece: a serialiser would hold the interpreter's lock, and with it every stream.
    """
    codec, history, fields = model.bundle.codec(InteractionCodec), one.history, one.fields
    answer: dict[str, Any] = {}
    identity = getattr(fields, "id", None)
    if identity is not None:
        answer["id"] = identity
    answer["attempts"] = len(history.ids)
    answer["cached_tokens"] = result.cached
    if fields.unknown_skill == "ignore":
        answer["ignored"] = history.count - len(history.ids)
    parts = [_dumps(answer)[:-1]]
    if fields.each:
        parts.append(f',"each":[{_each(one, result)}]')
    if one.curve is not None:
        assert result.curve is not None
        columns = zip(one.curve.tolist(), result.curve.T, strict=True)
        curves = (
            f'{{"skill":{_dumps(codec.skills[skill])},"probabilities":[{",".join(map(_number, values.tolist()))}]}}'
            for skill, values in columns
        )
        parts.append(f',"curve":[{",".join(curves)}]')
    if one.skills is None:
        predictions = _template(codec) % tuple(result.after.tolist())
    else:
        chosen = zip(one.skills.tolist(), result.after[one.skills].tolist(), strict=True)
        each = (f'{{"skill":{_dumps(codec.skills[skill])},"probability":{_number(value)}}}' for skill, value in chosen)
        predictions = f"[{','.join(each)}]"
    parts += [f",{_dumps(name)}:{_dumps(value)}" for name, value in told.items()]
    return f'{"".join(parts)},"predictions":{predictions}}}'


def _each(one: _Asked, result: Traced) -> str:
    """Every attempt as it was sent, with P(correct) as it stood before it."""
    assert result.before is not None
    before = ["null"] * one.history.count
    for place, probability in zip(one.history.places.tolist(), result.before.tolist(), strict=True):
        if not math.isnan(probability):
            before[place] = _number(probability)
    skills = {attempt["skill"]: _dumps(attempt["skill"]) for attempt in one.fields.attempts}
    return ",".join(
        f'{{"skill":{skills[attempt["skill"]]},"correct":{"true" if attempt["correct"] else "false"},'
        f'"probability":{probability}}}'
        for attempt, probability in zip(one.fields.attempts, before, strict=True)
    )


def _values(one: _Asked, result: Traced) -> int:
    """How many numbers a learner's answer has."""
    curve = 0 if result.curve is None else result.curve.size
    return (
        curve + (one.history.count if one.fields.each else 0) + len(result.after if one.skills is None else one.skills)
    )


@cache
def _template(codec: InteractionCodec) -> str:
    """The predictions of all skills, with a place for each probability."""
    names = (json.dumps(name).replace("%", "%%") for name in codec.skills)
    return "[" + ",".join(f'{{"skill":{name},"probability":%.9g}}' for name in names) + "]"


def _number(probability: float) -> str:
    """Nine digits tell every float32 from every other, and are half as long as what float64 would take to say it."""
    return repr(float(f"{probability:.9g}"))


def _dumps(value: Any) -> str:
    return _ENCODER.encode(value)
