"""What the Open Inference Protocol infers: one step of each row, or the next of a sequence, which is a session."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from carousel.service.api.oip.datatypes import NAMES
from carousel.service.api.oip.messages import TensorMetadata
from carousel.service.api.oip.tensors import refuse
from carousel.service.engine.parameters import Array
from carousel.service.engine.port import Urgency
from carousel.service.served.ports import live_ports
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.errors import UnknownSession
from carousel.service.work.memories import Memories, MemoryChoice
from carousel.service.work.rows import context_ports, encoder_ports
from carousel.service.work.stepping import MAX_SEQUENCES, NO_MEMORY, Asked, take_all

Sizes = Iterable[int | None]
"""Of a tensor; None where they are free."""

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
    def memory(self) -> MemoryChoice:
        """Where a request goes on from, and whether it is kept."""
        if self.start and self.end:
            return NO_MEMORY
        return MemoryChoice(session=self.session, begin="new" if self.start else "old", drop=self.end)

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
    steps = {**live_ports(model.bundle), **context_ports(model)}
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
    *,
    max_answer_bytes: int,
) -> dict[str, Array]:
    """What a model says of rows. [B, ...] each

    Args:
        model: whose step is run, or encoder.
        memories: where sequences are kept.
        tensors: what each port is fed, checked but for its numbers. [B, ...] each
        outputs: that are wanted.
        sequence: None where each row is a sequence of one step.
        urgency: of the request.
        max_answer_bytes: of outputs.

    Raises:
        ServiceError: invalid_request, unknown_session, what sessions and the engine say.
    """
    counts = {len(array) for array in tensors.values()} or {1}
    if len(counts) > 1:
        raise refuse(f"inputs have {' and '.join(f'{rows:,}' for rows in sorted(counts))} rows; allowed is one number")
    (count,) = counts
    if not 1 <= count <= (MAX_SEQUENCES if sequence is None else 1):
        allowed = f"are 1 to {MAX_SEQUENCES:,}" if sequence is None else "is 1, of a sequence"
        raise refuse(f"inputs have {count:,} rows; allowed {allowed}")
    rows = [_row(model, tensors, outputs, row, sequence) for row in range(count)]
    try:
        told = await take_all(model, memories, rows, urgency, max_answer_bytes=max_answer_bytes)
    except UnknownSession:
        assert sequence is not None
        raise UnknownSession(
            f"sequence {sequence.id!r:.100} of {model.name} was not started, or has ended; its first request says "
            "sequence_start"
        ) from None
    return {name: np.stack([one.outputs[name] for one in told]) for name in outputs}


def _row(
    model: ServedModel, tensors: Mapping[str, Array], outputs: tuple[str, ...], row: int, sequence: Sequence | None
) -> Asked:
    """One row's step: an encoder takes it whole, a step takes it as the only one of the request."""
    whole, context = encoder_ports(model), context_ports(model)
    steps = live_ports(model.bundle)
    return Asked(
        {name: tensors[name][row] for name in whole} | {name: tensors[name][row : row + 1] for name in steps},
        outputs,
        steps=None if steps or whole else 1,
        context={name: tensors[name][row] for name in context},
        memory=NO_MEMORY if sequence is None else sequence.memory,
    )
