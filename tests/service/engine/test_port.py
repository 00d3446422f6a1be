"""What crosses threads cannot be written to, and nobody tries."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect

import numpy as np
import pytest

from carousel.service.engine import parameters, port
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import (
    BeamParameters,
    ReadParameters,
    SamplingParameters,
    ScoreParameters,
    TensorParameters,
)
from carousel.service.engine.port import Ended, Request, Snapshot
from carousel.service.engine.threads.async_engine import AsyncEngine

MODULUS = 9973


def test_values_of_the_port_are_frozen():
    values = [
        value
        for module in (port, parameters)
        for _, value in inspect.getmembers(module, dataclasses.is_dataclass)
        if value.__module__ == module.__name__
    ]
    assert len(values) > 15
    assert [value for value in values if not value.__dataclass_params__.frozen] == []


def test_engine_has_what_the_port_promises():
    for name in ("start", "admit", "check_room", "submit", "cancel", "describe", "vacated", "close"):
        promised, given = getattr(port.Engine, name), getattr(AsyncEngine, name)
        assert inspect.signature(promised).parameters.keys() == inspect.signature(given).parameters.keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request(np.arange(3), ScoreParameters()).consumed = 1


def fold(ids, states):
    """As the fake runner does."""
    folded = states["state.a"][:, 0].astype(np.int64)
    for column in ids.T:
        folded = (folded * 31 + column + 1) % MODULUS
    wide = np.broadcast_to(folded[:, None, None], (len(ids), 2, 3)).astype(np.float32)
    return {"state.a": folded[:, None].astype(np.float32), "state.b": wide}


def fields_of(request):
    return repr([getattr(request, field.name) for field in dataclasses.fields(request)])


def fixed(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("prefill", [None, fold], ids=["steps", "prefill"])
async def test_no_thread_writes_to_what_a_request_holds(make_runner, prefill):
    context = {"memory.a": fixed(np.full(7, 3, np.float32)), "memory.b": fixed(np.full((1, 2), 3))}
    runner = make_runner(looks=prefill is None)
    state = {"state.a": fixed(np.full(1, 9, np.float32)), "state.b": fixed(np.full((2, 3), 9, np.float32))}
    prompt = fixed(np.arange(200) % 23)
    heads = [
        SamplingParameters(max_tokens=5, repetition_penalty=1.5),
        BeamParameters(3, 6, end=0),
        ScoreParameters(alternatives=2),
        ReadParameters(prompt, fixed(np.array([1, 4])), last=9),
        ReadParameters(last=2),
        TensorParameters(("logits",), each=True),
    ]
    requests = [
        Request(
            prompt,
            head,
            snapshot=Snapshot(state, prompt),
            context=None if prefill else context,
            keep_state=True,
            keep_prompt=head.streams,
            checkpoints=(3, 100, 150),
            consumed=3 * (place % 2),
        )
        for place, head in enumerate(heads)
    ]
    before = [fields_of(request) for request in requests]
    engine = AsyncEngine(EngineCore(runner, 8, prefill=prefill), max_waiting=100, on_steps=lambda reports: None)
    engine.start()
    try:
        async with asyncio.timeout(30):
            for request in requests:
                with engine.admit(request.head.rows) as place:
                    events = place.start(request)
                    while not isinstance(event := await events.get(), Ended):
                        pass
                    assert event.result is not None or request.head.streams
                    assert event.reason.value in ("stop", "length"), event.detail
                    assert event.counts.prompt == len(prompt)
    finally:
        await engine.close()
    assert before == [
        repr([getattr(request, field.name) for field in dataclasses.fields(request)]) for request in requests
    ]
