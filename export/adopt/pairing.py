"""Which output is which input after the step: proved, never guessed from shapes alone.

The evidence, strongest first: the caller says so; a free time axis (many steps in one call are the same steps one by
one, for one order of the states alone); the ports of a recurrent node; the names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from carousel.export.adopt.axes import Found
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.lift import PORTS, carried_by, recurrent_nodes
from carousel.export.adopt.trial import Array, Trial, distance, made_up, take

STEPS = 4
MAX_ORDERS = 720
NEAR = 1e-4
"""What rounding makes of four steps, at most; a wrong order differs by far more."""
FAR = 10
"""How many times as far off as the best order the next one must be."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A state: the input, the output that it is after a step, and why it is known to be."""

    before: str
    after: str
    why: str


Candidates = Mapping[str, Sequence[str]]
"""Of inputs that may be states, the outputs of their shape."""


@dataclass(frozen=True, slots=True)
class _Network:
    model: onnx.ModelProto
    found: Found
    times: Mapping[str, int]


def pair_states(
    model: onnx.ModelProto,
    found: Found,
    times: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[np.generic]],
    said: Mapping[str, str],
    lifted: Mapping[str, str],
) -> list[Pair]:
    """The states of a network.

    Args:
        model: with a free batch.
        found: its axes.
        times: of each output that has one, the time axis.
        shapes: of each output, for one row and one step.
        dtypes: likewise.
        said: by input, the output that the caller says it is.
        lifted: by input, the output of states that adoption itself gave ports.

    Raises:
        AdoptionRefused: what was said cannot be, nothing proves a pair, or two could be one.
    """
    pairs = [
        Pair(before, after, "a recurrent node's own state, which the file kept inside")
        for before, after in lifted.items()
    ]
    for before, after in said.items():
        _check_said(before, after, found, shapes, dtypes)
        pairs.append(Pair(before, after, "as it was said"))
    taken = {pair.before for pair in pairs}, {pair.after for pair in pairs}
    candidates = {
        name: [
            after
            for after, shape in shapes.items()
            if after not in taken[1] and after not in times and (shape, dtypes[after]) == (port.shape(1), port.dtype)
        ]
        for name, port in found.inputs.items()
        if name not in taken[0] and port.time is None
    }
    candidates = {name: afters for name, afters in candidates.items() if afters}
    network = _Network(model, found, times)
    for evidence in (_by_time, _by_port, _by_name):
        proved = evidence(network, candidates, pairs)
        pairs += proved
        for pair in proved:
            candidates.pop(pair.before)
        gone = {pair.after for pair in proved}
        candidates = {
            name: left for name, afters in candidates.items() if (left := [a for a in afters if a not in gone])
        }
    if not pairs:
        if candidates:
            lines = "; ".join(f"--state {name}={after}" for name, afters in candidates.items() for after in afters)
            raise AdoptionRefused(
                f"nothing proves which output is a state's next value; say it, with those that hold of: {lines}"
            )
        raise AdoptionRefused(
            "no input is a state: none has an output of its shape, and no LSTM, GRU or RNN node keeps one inside; "
            "a network without a state is an encoder (--encoder-only)"
        )
    return pairs


def _check_said(
    before: str,
    after: str,
    found: Found,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[np.generic]],
) -> None:
    if before not in found.inputs:
        raise AdoptionRefused(
            f"--state {before}={after}: there is no input {before!r}; inputs are {', '.join(found.inputs)}"
        )
    if after not in shapes:
        raise AdoptionRefused(
            f"--state {before}={after}: there is no output {after!r}; outputs are {', '.join(shapes)}"
        )
    port = found.inputs[before]
    if (port.shape(1), port.dtype) != (shapes[after], dtypes[after]):
        raise AdoptionRefused(
            f"--state {before}={after}: the input is {port.dtype}{list(port.shape(1))}, the output "
            f"{dtypes[after]}{list(shapes[after])}; a state keeps its type and shape"
        )


def _by_time(network: _Network, candidates: Candidates, proved: Sequence[Pair]) -> list[Pair]:
    """Four steps in one call against four calls, over all orders."""
    if not candidates or not network.times:
        return []
    random = np.random.default_rng(3)
    trial = Trial(network.model)
    feeds = {name: made_up(random, port, 1, STEPS) for name, port in network.found.inputs.items()}
    try:
        whole = trial(feeds)
    except Exception:  # it takes one step a call
        return []
    orders = [
        dict(zip(candidates, order, strict=True))
        for order in itertools.islice(itertools.product(*candidates.values()), MAX_ORDERS)
        if len(set(order)) == len(order)
    ]
    known = {pair.before: pair.after for pair in proved}
    errors = [(_off(trial, network, feeds, whole, {**known, **order}), order) for order in orders]
    errors.sort(key=lambda each: each[0])
    if not errors or errors[0][0] > NEAR or (len(errors) > 1 and errors[1][0] <= max(NEAR, FAR * errors[0][0])):
        return []
    return [
        Pair(before, after, f"{STEPS} steps in one call are {STEPS} calls, within {errors[0][0]:.1e}")
        for before, after in errors[0][1].items()
    ]


def _off(
    trial: Trial,
    network: _Network,
    feeds: Mapping[str, Array],
    whole: Mapping[str, Array],
    order: Mapping[str, str],
) -> float:
    now = dict(feeds)
    off = 0.0
    for step in range(STEPS):
        for name, port in network.found.inputs.items():
            if port.time is not None:
                now[name] = take(feeds[name], port.time, step)
        outputs = trial(now)
        for name, axis in network.times.items():
            off = max(off, distance(outputs[name], take(whole[name], axis, step)))
        now |= {before: outputs[after] for before, after in order.items()}
    return max([off, *(distance(outputs[after], whole[after]) for after in order.values())])


def _by_port(network: _Network, candidates: Candidates, _: Sequence[Pair]) -> list[Pair]:
    """A node's initial state is one input, its last one output, but for nodes that only move values."""
    sources = carried_by(network.model.graph)
    begins: dict[str, set[str]] = {}
    for node in recurrent_nodes(network.model.graph):
        for source, result in PORTS[node.op_type]:
            if len(node.input) <= source or len(node.output) <= result:
                continue
            for name in candidates:
                if name in sources.get(node.input[source], {node.input[source]}):
                    begins.setdefault(name, set()).add(node.output[result])
                    if result == 1:
                        begins[name].add(node.output[0])  # of one step, all of Y is Y_h
    pairs = []
    for name, afters in candidates.items():
        reached = [after for after in afters if begins.get(name, set()) & sources.get(after, {after})]
        if len(reached) == 1:
            pairs.append(Pair(name, reached[0], "the ports of its recurrent node"))
    return pairs


WORDS = re.compile(r"(?:^|[_.\-/:])(?:in|out|input|output|next|new|past|present|prev|previous|last)(?=$|[_.\-/:])")
ENDS = re.compile(r"(?<=[a-z])(?:n|0|in|out)$|(?:^|[_.\-/:])[0n]$")


def bare(name: str, *, ends: bool = False) -> str:
    """A name without the words for before and after; with `ends` also without those of `h0`, `hN` and `stateN`."""
    name = name.rpartition("/")[2].partition(":")[0].lower()
    while (shorter := WORDS.sub("", name)) != name:
        name = shorter
    if ends:
        name = ENDS.sub("", name) or name
    return name.strip("_.-")


def _by_name(_: _Network, candidates: Candidates, __: Sequence[Pair]) -> list[Pair]:
    pairs: list[Pair] = []
    for ends in (False, True):
        done = {pair.before for pair in pairs}
        open_ = {name: afters for name, afters in candidates.items() if name not in done}
        for name, afters in open_.items():
            same = [after for after in afters if bare(after, ends=ends) == bare(name, ends=ends)]
            rivals = [other for other in open_ if other != name and bare(other, ends=ends) == bare(name, ends=ends)]
            if len(same) == 1 and not rivals:
                pairs.append(Pair(name, same[0], "their names"))
    return pairs
