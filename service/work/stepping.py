"""Steps in terms of a model's ports, whatever its task: what predict and the Open Inference Protocol are made of.

Sequences of one request are all taken, or none: each is looked at before any is run, and what they leave in sessions is
written together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from carousel.models.codec.text import CONTEXT_TOKENS
from carousel.service.engine.encoder.encoding import Encoding
from carousel.service.engine.feed import fed_steps, steps_as_bytes
from carousel.service.engine.parameters import Array, Ids, TensorParameters, Tensors
from carousel.service.engine.port import INTERACTIVE, Ended, Place, Request, Urgency
from carousel.service.errors import RequestError
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.ports import as_fed, id_codec, live_ports, step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.memory import NO_IDS
from carousel.service.sessions.sessions import Change
from carousel.service.work.encoding import encode
from carousel.service.work.generation import admit_many, paid_before, run_to_end
from carousel.service.work.memories import Memories, MemoryChoice, Recall
from carousel.service.work.rows import NO_STEPS, Rows, array_of, context_rows, encoder_ports
from carousel.service.work.turns import in_turns

MAX_SEQUENCES = 1000
MANY_STEPS = 256
"""From which on they are looked at on a thread, not to hold the event loop up."""

NO_MEMORY = MemoryChoice()


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One sequence of a request.

    Args:
        inputs: by port of the step a row for each step, oldest first; by port of the encoder its whole input.
        outputs: ports to give, of those that the head has.
        steps: how many, of a model that has no inputs; None where it has.
        context: by port, the one row that every step reads.
        each: whether the outputs of every step are wanted, or of the last.
        memory: where it goes on from, and who keeps the new one.
        cache_salt: beginnings with another one are not met.
        where: what to call it in a message: `sequences.3.` or nothing.
    """

    inputs: Mapping[str, Rows]
    outputs: tuple[str, ...]
    steps: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    each: bool = False
    memory: MemoryChoice = NO_MEMORY
    cache_salt: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What came of a sequence.

    Args:
        outputs: by port the row of the last step, or rows of each; all that an encoder alone says.
        steps: that were taken; 0 by an encoder alone.
        cached: how many of them had been taken before, and were not again.
        told: what an answer says of the new memory.
    """

    outputs: Mapping[str, Array]
    steps: int = 0
    cached: int = 0
    told: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """A sequence as the engine takes it, and the whole inputs of its encoder; `ids`, whether it is fed any."""

    asked: Asked
    whole: Mapping[str, Rows]
    ids: bool = False
    prompt: Ids = field(default_factory=lambda: NO_IDS)
    fed: Mapping[str, Array] = field(default_factory=dict)
    context: Mapping[str, Array] | None = None


async def take_all(
    model: ServedModel,
    memories: Memories,
    sequences: Sequence[Asked],
    urgency: Urgency = INTERACTIVE,
    *,
    max_answer_bytes: int,
) -> list[Stepped]:
    """Take all sequences their steps forward.

    Args:
        model: of any task.
        memories: sessions and tokens.
        sequences: at least one.
        urgency: of the request.
        max_answer_bytes: that the outputs of all may have.

    Raises:
        ServiceError: and none is taken: no session is written.
    """
    if len(sequences) > MAX_SEQUENCES:
        raise RequestError(
            "invalid_request",
            f"there are {len(sequences):,} sequences; allowed are {MAX_SEQUENCES:,} in a request; send several",
        )
    async with AsyncExitStack() as places:
        # As many rows as there are at most: a large request takes turns instead of everybody's place.
        wanted = max(1, min(len(sequences), model.engine.describe().max_rows))
        taken = admit_many(places, model, wanted, urgency)
        if sum(map(_length, sequences)) < MANY_STEPS:
            checked = _check_all(model, sequences, max_answer_bytes)
        else:
            checked = await asyncio.to_thread(_check_all, model, sequences, max_answer_bytes)
        if model.bundle.manifest.step.graph:
            told = await _step_all(model, memories, taken, checked)
        else:

            async def say(_: Place, index: int) -> Stepped:
                encoding = await encode(model, checked[index].whole, batch=urgency.batch)
                return Stepped({name: encoding.context[name] for name in checked[index].asked.outputs})

            told = await in_turns(taken, len(checked), say)
        for place in taken:
            place.cover()
        return told


async def _step_all(
    model: ServedModel, memories: Memories, places: Sequence[Place], checked: Sequence[_Checked]
) -> list[Stepped]:
    async with AsyncExitStack() as held:
        recalls = [await held.enter_async_context(memories.recall(model.identity, one.asked.memory)) for one in checked]

        async def run(place: Place, index: int) -> tuple[Ended, int, Change | None]:
            return await _run(model, place, checked[index], recalls[index])

        ends = await in_turns(places, len(checked), run)
        await memories.sessions.commit(*(change for *_, change in ends if change is not None))
    return [
        Stepped(_outputs(one, end), len(one.prompt), cached, recall.told)
        for one, recall, (end, cached, _) in zip(checked, recalls, ends, strict=True)
    ]


async def _run(model: ServedModel, place: Place, one: _Checked, recall: Recall) -> tuple[Ended, int, Change | None]:
    asked, context, snapshot = one.asked, one.context, recall.snapshot
    begun: Encoding | None = None
    if encoder_ports(model):
        begun = await encode(model, one.whole, batch=place.batch)
        context = begun.context
        snapshot = snapshot or begun.snapshot
    beginning = Beginning(snapshot=snapshot)
    if snapshot is None and not asked.each and context is None and (one.ids or one.fed):
        beginning = model.prefixes.begin(one.prompt, asked.cache_salt, steps_as_bytes(one.fed) if one.fed else None)
    owed = NO_IDS if recall.snapshot is None or not one.ids else recall.snapshot.pending
    wanted = Request(
        np.concatenate([owed, one.prompt]),
        TensorParameters(asked.outputs, each=asked.each),
        inputs=one.fed,
        snapshot=beginning.snapshot,
        context=context,
        keep_state=asked.memory.keeps,
        checkpoints=beginning.checkpoints,
        consumed=beginning.length,
        paid=0 if recall.snapshot is None else paid_before(recall.snapshot),
    )
    end = await run_to_end(model, place, wanted)
    beginning.keep(end.checkpoints)
    model.metrics.queued(place)
    change = None
    if end.snapshot is not None:
        last = np.concatenate([recall.context, one.prompt])[-CONTEXT_TOKENS:] if one.ids else NO_IDS
        change = recall.note(end.snapshot, consumed=len(one.prompt), context=last)
    return end, beginning.length, change


def _outputs(one: _Checked, end: Ended) -> Mapping[str, Array]:
    """Without what the ids said that a memory had not consumed."""
    assert isinstance(end.result, Tensors)
    if one.asked.each:
        return {name: rows[-len(one.prompt) :] for name, rows in end.result.outputs.items()}
    return {name: rows[-1] for name, rows in end.result.outputs.items()}


def _check_all(model: ServedModel, sequences: Sequence[Asked], max_answer_bytes: int) -> list[_Checked]:
    limits, outputs = model.bundle.manifest.limits, step_ports(model.bundle).outputs
    steps = sum(map(_length, sequences))
    if steps > limits.max_prompt_tokens:
        longest = max(sequences, key=_length)
        name = max(longest.inputs, key=lambda port: len(longest.inputs[port]), default="")
        where = f"{longest.where}inputs.{name}: has {_length(longest):,}" if name else f"steps: are {steps:,}"
        raise RequestError(
            "prompt_too_long",
            f"{where} steps, of {steps:,} in all; this model takes up to {limits.max_prompt_tokens:,} in a request "
            "(manifest limits.max_prompt_tokens); send them in parts, with a session",
        )
    told = sum(
        (_length(one) if one.each else 1) * outputs[name].row_bytes
        for one in sequences
        for name in one.outputs
        if name in outputs
    )
    if told > max_answer_bytes and (len(sequences) > 1 or sequences[0].each):
        raise RequestError(
            "invalid_request",
            f"the outputs asked for have {told:,} bytes; allowed are {max_answer_bytes:,} in an answer "
            "(CAROUSEL_MAX_BODY_BYTES); ask for fewer outputs, without each, or in parts",
        )
    named: dict[str, Asked] = {}
    for one in sequences:
        session = one.memory.session
        if session is not None and named.setdefault(session, one) is not one:
            raise RequestError(
                "invalid_request",
                f"{one.where}session: {named[session].where}session is {session[:128]!r} too; one sequence of a "
                "request may go on from a session",
            )
    return [_check(model, one) for one in sequences]


def _check(model: ServedModel, one: Asked) -> _Checked:
    encoders, specs = encoder_ports(model), live_ports(model.bundle)
    whole = {name: rows for name, rows in one.inputs.items() if name in encoders}
    rest = {name: rows for name, rows in one.inputs.items() if name not in encoders}
    if not model.bundle.manifest.step.graph:
        _require_nothing_of_steps(one, rest)
        return _Checked(one, whole)
    if specs and one.steps is not None:
        raise RequestError("invalid_request", one.where + NO_STEPS)
    given = {}
    for name, rows in rest.items():
        try:
            given[name] = array_of(name, rows, specs.get(name))
        except ValueError as error:
            raise RequestError("invalid_request", f"{one.where}inputs.{name[:100]}: {error}") from None
    try:
        prompt, fed = fed_steps(specs, given, one.steps, model.bundle.manifest.step.non_finite)
    except ValueError as error:
        raise RequestError("invalid_request", f"{one.where}inputs: {error}") from None
    ids = id_codec(model.bundle) is not None
    if ids:
        try:
            (prompt,), fed = cast(Mapping[str, Ids], as_fed(model.bundle, fed)).values(), {}
        except ValueError as error:
            raise RequestError("token_out_of_range", f"{one.where}inputs: {error}") from None
    return _Checked(one, whole, ids, prompt, fed, context_rows(model, one.context, one.where))


def _length(one: Asked) -> int:
    """Of its longest port; what a row is, is not known yet."""
    return max((len(rows) for rows in one.inputs.values()), default=one.steps or 0)


def _require_nothing_of_steps(one: Asked, rest: Mapping[str, Rows]) -> None:
    """Hold that a request to an encoder alone asks for no more than that."""
    asked = {
        **{f"inputs.{name[:100]}": True for name in rest},
        "steps": one.steps is not None,
        "context": bool(one.context),
        "each": one.each,
        "session": one.memory.session is not None,
        "state": one.memory.state is not None,
        "return_state": one.memory.return_state,
        "cache_salt": one.cache_salt is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise RequestError(
                "invalid_request",
                f"{one.where}{name}: the model is an encoder, which takes its ports whole and keeps no state",
            )
