"""What the Open Inference Protocol infers: one step of each row, or the next of a sequence, which is a session."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from carousel.service.api.oip.datatypes import NAMES
from carousel.service.api.oip.messages import TensorMetadata
from carousel.service.api.oip.tensors import refuse
from carousel.service.engine.feed import as_port, fed_steps
from carousel.service.engine.parameters import Array, Ids, TensorParameters, Tensors
from carousel.service.engine.port import Place, Request, Snapshot, Urgency
from carousel.service.errors import RequestError, ServiceError
from carousel.service.served.ports import as_fed, id_codec, live_ports, step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.work.encoding import encode
from carousel.service.work.generation import admit, admit_many, run_to_end
from carousel.service.work.memories import Memories, MemoryChoice
from carousel.service.work.rows import context_ports, encoder_ports
from carousel.service.work.turns import all_or_none, in_turns

Sizes = Iterable[int | None]
"""Of a tensor; None where they are free."""

MAX_ROWS = 4096
"""Of one request."""

SPELLED = 80
"""Bytes of a sequence's name that are spelled out in its session's; of a longer one that has a digest."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Which sequence a request belongs to, and what it is to it.

    Args:
        id: the client's: a number above 0, or a text.
        start: whether it is the first request, and an older sequence of that id is forgotten.
        end: whether it is the last.
    """

    id: int | str
    start: bool
    end: bool

    @property
    def session(self) -> str:
        """Its session: 7 and "7" have two, and other texts than those of a session's id have one."""
        if isinstance(self.id, int):
            return f"oip-int-{self.id}"
        name = self.id.encode(errors="surrogatepass")
        if len(name) > SPELLED:
            return f"oip-sha256-{hashlib.sha256(name).hexdigest()}"
        return f"oip-str-{base64.urlsafe_b64encode(name).decode().rstrip('=')}"


def input_ports(model: ServedModel) -> dict[str, TensorMetadata]:
    """What an encoder is fed whole, or a step, and then the context that it reads; ids are INT64."""
    whole = {name: _metadata(name, spec.dtype, spec.shape) for name, spec in encoder_ports(model).items()}
    steps = {} if whole else {**live_ports(model.bundle), **context_ports(model)}
    return whole | {name: _metadata(name, spec.dtype, (None, *spec.shape)) for name, spec in steps.items()}


def output_ports(model: ServedModel) -> dict[str, TensorMetadata]:
    """What is given of a step, or of an encoder alone, in the manifest's order; no states."""
    bundle = model.bundle
    graph = bundle.encoder if bundle.encoder is not None and not bundle.step.outputs else bundle.step
    specs = {spec.name: _metadata(spec.name, spec.dtype, spec.shape) for spec in graph.outputs}
    return {name: specs[name] for name in bundle.manifest.head.outputs}


def _metadata(name: str, dtype: str, shape: Sizes) -> TensorMetadata:
    return TensorMetadata(name=name, datatype=NAMES[dtype], shape=[-1 if size is None else size for size in shape])


def example(model: ServedModel) -> Mapping[str, Any] | None:
    """A body that works; None where the model has none of a fixed size."""
    ports = input_ports(model)
    if encoder_ports(model):
        return None
    inputs = [
        {**port.model_dump(), "shape": [1, *port.shape[1:]], "data": np.zeros(port.shape[1:]).reshape(-1).tolist()}
        for port in ports.values()
    ]
    for tensor in inputs:
        if not tensor["datatype"].startswith("FP"):
            tensor["data"] = [bool(each) if tensor["datatype"] == "BOOL" else int(each) for each in tensor["data"]]
    parameters = {"sequence_id": 7, "sequence_start": True}
    return {"The first step of a sequence": {"inputs": inputs, "parameters": parameters}}


async def infer(
    model: ServedModel,
    memories: Memories,
    tensors: Mapping[str, Array],
    outputs: tuple[str, ...],
    sequence: Sequence | None,
    urgency: Urgency,
) -> dict[str, Array]:
    """What a model says of rows. [B, ...] each

    Args:
        model: whose step is run.
        memories: where sequences are kept.
        tensors: what each port is fed, checked but for its numbers. [B, ...] each
        outputs: that are wanted.
        sequence: None where each row is a sequence of one step.
        urgency: of the request.

    Raises:
        ServiceError: invalid_request, unknown_session, what sessions and the engine say.
    """
    rows = {len(array) for array in tensors.values()} or {1}
    if len(rows) > 1:
        raise refuse(f"inputs have {' and '.join(f'{count:,}' for count in sorted(rows))} rows; allowed is one number")
    (count,) = rows
    most = MAX_ROWS if sequence is None else 1
    if not 1 <= count <= most:
        allowed = f"are 1 to {MAX_ROWS:,}" if sequence is None else "is 1, of a sequence"
        raise refuse(f"inputs have {count:,} rows; allowed {allowed}")
    if encoder_ports(model):
        return await _encoded(model, tensors, outputs, count, sequence, urgency)
    requests = await asyncio.to_thread(_requests, model, tensors, outputs, count)
    if sequence is None:
        results = await _apart(model, requests, urgency)
    else:
        results = [await _next(model, memories, requests[0], sequence, urgency)]
    return {name: np.concatenate([result.outputs[name] for result in results]) for name in outputs}


async def _encoded(
    model: ServedModel,
    tensors: Mapping[str, Array],
    outputs: tuple[str, ...],
    count: int,
    sequence: Sequence | None,
    urgency: Urgency,
) -> dict[str, Array]:
    """What an encoder alone makes of each row."""
    if model.bundle.manifest.step.graph or sequence is not None:
        raise RequestError(
            "wrong_task",
            f"{model.name} has an encoder: of one alone this protocol tells what it makes of rows, and there are no "
            "sequences; others are asked on their own routes (GET /v1/models)",
        )
    with admit(model, urgency=urgency):
        whole = [{name: array[row].tolist() for name, array in tensors.items()} for row in range(count)]
        told = await all_or_none(encode(model, inputs, batch=urgency.batch) for inputs in whole)
    return {name: np.stack([encoding.context[name] for encoding in told]) for name in outputs}


def _requests(model: ServedModel, tensors: Mapping[str, Array], outputs: tuple[str, ...], count: int) -> list[Request]:
    """One step of each row."""
    bundle = model.bundle
    head = TensorParameters(outputs)
    try:
        typed = {
            name: as_port(name, tensors[name], port.dtype, non_finite=name in bundle.manifest.step.non_finite)
            for name, port in live_ports(bundle).items()
        }
        fed = as_fed(bundle, typed)
        context = {spec.name: as_port(spec.name, tensors[spec.name], spec.dtype) for spec in bundle.context}
    except ValueError as error:
        raise refuse(str(error)) from None
    of_ids = id_codec(bundle) is not None
    made = []
    for row in range(count):
        one = {name: array[row : row + 1] for name, array in fed.items()}
        read = {name: array[row] for name, array in context.items()} or None
        if of_ids:
            (prompt,) = cast(Mapping[str, Ids], one).values()
            made.append(Request(prompt, head, context=read))
        else:
            prompt, inputs = fed_steps(step_ports(bundle).inputs, one, 1, bundle.manifest.step.non_finite)
            made.append(Request(prompt, head, inputs=inputs, context=read))
    return made


async def _apart(model: ServedModel, requests: list[Request], urgency: Urgency) -> list[Tensors]:
    """Each by itself, from the beginning."""
    with ExitStack() as stack:
        wanted = min(len(requests), model.engine.describe().max_rows)
        places = admit_many(stack, model, wanted, urgency)

        async def run(place: Place, index: int) -> Tensors:
            end = await run_to_end(model, place, requests[index])
            assert isinstance(end.result, Tensors)
            return end.result

        results = await in_turns(places, len(requests), run)
        for place in places:
            model.metrics.queued(place)
        return results


async def _next(
    model: ServedModel, memories: Memories, request: Request, sequence: Sequence, urgency: Urgency
) -> Tensors:
    """The next step of a sequence. One that fails leaves it as it was; one that was to begin anew is gone then."""
    with admit(model, urgency=urgency) as place:
        if sequence.start:
            await _forget(model, memories, sequence)
        choice = MemoryChoice(session=None if sequence.start and sequence.end else sequence.session)
        async with memories.recall(model.identity, choice) as recall:
            if recall.before is None and not sequence.start:
                raise ServiceError(
                    "unknown_session",
                    f"sequence {sequence.id!r:.100} of {model.name} was not started, or has ended; its first request "
                    "says sequence_start",
                )
            end = await run_to_end(model, place, _going_on(request, recall.snapshot, keep=not sequence.end))
            model.metrics.queued(place)
            if end.snapshot is not None:
                await recall.keep(end.snapshot, consumed=1)
        place.cover()
        if sequence.end and not sequence.start:
            await memories.delete(model.name, sequence.session)
    assert isinstance(end.result, Tensors)
    return end.result


def _going_on(request: Request, snapshot: Snapshot | None, *, keep: bool) -> Request:
    """The same from where a sequence is; ids that it has not consumed go first."""
    owed = () if snapshot is None else snapshot.pending
    prompt = np.concatenate([owed, request.prompt]).astype(np.int64) if len(owed) else request.prompt
    return replace(request, prompt=prompt, snapshot=snapshot, keep_state=keep)


async def _forget(model: ServedModel, memories: Memories, sequence: Sequence) -> None:
    """Let go of what an older sequence of the same id has left, if there is any."""
    try:
        await memories.delete(model.name, sequence.session)
    except ServiceError as error:
        if error.code != "unknown_session":
            raise
