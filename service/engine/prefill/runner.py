"""Runs prefill graphs: one after another, or at once where a call is long enough to keep several cores busy.

Layers of a recurrent network can work on different parts of a prompt at the same time: while the upper graph takes
what the lower one has made of some ids, the lower one takes the next. Each graph runs on one thread, in one order, on
its own states, so nothing depends on who is ahead.

Axes: b rows, T ids of each.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

from carousel.models.cores import usable_cores
from carousel.models.graph import ABOVE, BELOW, ELEMENT_TYPES
from carousel.service.engine.device import Device, DeviceArray, Tensor, address_of
from carousel.service.engine.parameters import Array, State
from carousel.service.engine.session import NO_WEIGHTS, Weights, open_session

Fed = Mapping[str, Tensor]
"""What a graph takes beside states, by name. [b, T, ...] each"""

PIECE = 16
"""Ids of each row that one graph is ahead of the next. The first and last piece of a call keep one graph busy alone, so
they should be short, and handing one over costs about what a token does."""

MIN_PIECES = 3
"""Shorter calls stay on one thread: they gain little, and are made beside the steps of others, which
have the other cores (prefill.py)."""


class OnnxPrefillRunner:
    """A bundle's prefill graphs in onnxruntime.

    Args:
        graphs: the verified bytes of prefill graphs that keep the bundle contract, from the lowest up.
        feed: what the lowest is fed of what the engine feeds a step. [b, T, ...] each
        after: of each state, the output that it is after the ids.
        device: where they run, and where they leave states; None for the CPU and numpy arrays.
        outputs: what a step says; a graph that is alone may say it of every step.
        weights: those that each graph shares with others, by name; none where not given.

    Raises:
        RunnerBroken: onnxruntime cannot load a graph, or a part of it does not run on the device.
    """

    def __init__(
        self,
        graphs: Sequence[bytes],
        feed: Callable[[Mapping[str, Array]], Fed],
        after: Mapping[str, str],
        device: Device | None = None,
        *,
        outputs: Iterable[str] = (),
        weights: Sequence[Weights] | None = None,
    ) -> None:
        self._feed = feed
        self._device = device
        shared = weights or [NO_WEIGHTS] * len(graphs)
        self._graphs = [_Graph(graph, device, own, after) for graph, own in zip(graphs, shared, strict=True)]
        self._outputs = list(outputs)
        self.says = device is None and bool(self._outputs) and self._graphs[-1].names.issuperset(self._outputs)
        self._cores = usable_cores()
        self._ahead = [ThreadPoolExecutor(1, "carousel-prefill") for _ in self._graphs[:-1]]
        """The threads of all graphs but the highest, which is the caller's."""

    def __call__(self, fed: Mapping[str, Array], states: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See PrefillRunner. A call takes milliseconds, so that what it takes and leaves may well be copied."""
        after = dict(states)
        length = next(iter(fed.values())).shape[1]
        if self._device is not None or not self._ahead or length < MIN_PIECES * PIECE or self._cores < 2:
            pieces: Iterator[Fed] = iter([self._feed(fed)])
            for graph in self._graphs:
                pieces = graph.consume(pieces, after)
            next(pieces)
            return after
        cuts = range(0, length, PIECE)
        pieces = (self._feed({name: array[:, cut : cut + PIECE] for name, array in fed.items()}) for cut in cuts)
        with _apart(self._ahead):
            for graph, thread in zip(self._graphs, self._ahead, strict=False):
                pieces = _run_ahead(thread, graph.consume(pieces, after), len(cuts))
            for _ in self._graphs[-1].consume(pieces, after):
                pass
        return after

    def steps(self, fed: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[State, Mapping[str, Array]]:
        """See PrefillRunner."""
        (graph,) = self._graphs
        return graph.steps(self._feed(fed), states, self._outputs)


class _Graph:
    """One prefill graph."""

    def __init__(self, graph: bytes, device: Device | None, weights: Weights, after: Mapping[str, str]) -> None:
        self._device = device
        # One thread: the products are so short that handing parts of them to another costs about what it gains.
        self._session = open_session(graph, "prefill", 1, device, arena=False, weights=weights)
        self.names = {spec.name for spec in self._session.get_outputs()}
        self._states = [spec.name for spec in self._session.get_inputs() if spec.name in after]
        self._after = [after[name] for name in self._states]
        self._hands_up = ABOVE in self.names

    def consume(self, pieces: Iterable[Fed], states: dict[str, Tensor]) -> Iterator[Fed]:
        """Consume a piece each time that the next graph's is asked for, and replace this graph's states."""
        asked = [*self._after, *([ABOVE] if self._hands_up else [])]
        for piece in pieces:
            fed = {**piece, **{name: states[name] for name in self._states}}
            outputs = self._call(asked, fed)
            states.update(zip(self._states, outputs, strict=False))
            yield {BELOW: outputs[-1]} if self._hands_up else {}

    def steps(self, fed: Fed, states: State, outputs: Sequence[str]) -> tuple[State, Mapping[str, Array]]:
        """The states after a piece, and what was said at each of its steps."""
        told = self._call([*self._after, *outputs], {**fed, **states})
        count = len(self._after)
        return dict(zip(self._states, told, strict=False)), dict(zip(outputs, told[count:], strict=True))

    def _call(self, asked: Sequence[str], fed: Fed) -> Sequence[Any]:
        """The outputs; in the device's memory, where there is one, wherever onnxruntime allocates them."""
        if self._device is None:
            return cast(Sequence[Any], self._session.run(asked, fed))
        binding = self._session.io_binding()
        for name, array in fed.items():
            binding.bind_input(name, *address_of(array))
        for name in asked:
            binding.bind_output(name, self._device.memory)
        self._session.run_with_iobinding(binding)
        return [
            DeviceArray.of(self._device, value, ELEMENT_TYPES[value.element_type()]) for value in binding.get_outputs()
        ]


@contextmanager
def _apart(threads: Iterable[Executor]) -> Iterator[None]:
    """Keep the calling thread on its core and these off it.

    A kernel wakes a thread on the core of the one that has work for it rather than on another that sleeps, above all
    where cores are virtual, and it takes tens of milliseconds to notice that one core does all. A call is over by then.
    """
    if sys.platform != "linux":
        yield
        return
    allowed, core = os.sched_getaffinity(0), ctypes.CDLL(None).sched_getcpu()
    for thread in threads:
        thread.submit(os.sched_setaffinity, 0, allowed - {core} or allowed)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _run_ahead(thread: Executor, pieces: Iterator[Fed], count: int) -> Iterator[Fed]:
    """The same pieces, made on a thread that does not wait until they are asked for. It raises what making one does."""
    made = [thread.submit(next, pieces) for _ in range(count)]
    return (piece.result() for piece in made)
