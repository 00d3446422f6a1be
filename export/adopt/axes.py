"""Which axis of each tensor is the batch, and which is time: found by running."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import copy_of, initializers
from carousel.export.adopt.trial import Port, Trial, axis_of, distance, made_up, require_memory, take

TRIES = 40
ROWS = 3
SAME = 0.1
"""Rows alone and in company may differ by so much of what rows differ from one another: a scale over the batch is found
later, and told; an axis that is not the batch differs by far more."""


@dataclass(frozen=True, slots=True)
class Found:
    """A network whose batch is free, and the axes of its ports."""

    model: onnx.ModelProto
    inputs: dict[str, Port]
    outputs: dict[str, int]
    """The batch axis of each output."""
    reshapes: tuple[str, ...] = ()
    """Nodes whose fixed batch was freed."""


def find_batch(model: onnx.ModelProto, ports: Sequence[Port], steps: int = 1) -> Found:
    """Find the batch, and free it; by calls of so many steps.

    Raises:
        AdoptionRefused: no axis can be it.
    """
    last = ""
    for assignment in itertools.islice(_assignments(ports), TRIES):
        named = {port.name: replace(port, batch=axis) for port, axis in zip(ports, assignment, strict=True)}
        if any(port.free for port in named.values()):
            port = next(port for port in named.values() if port.free)
            last = last or (
                f"input {port.name!r} has a free axis {port.free[0]} besides the batch; say how long a row is "
                f"(--shape {port.name}=SIZES) or that it is time (--time {port.name}={port.free[0]})"
            )
            continue
        try:
            found = _freed(model, named, steps)
        except AdoptionRefused as refusal:
            last = str(refusal)
            continue
        if found is not None:
            return found
    raise AdoptionRefused(last or "no axis of its inputs is a batch: rows together are not what each is alone")


def _assignments(ports: Sequence[Port]) -> Iterator[tuple[int | None, ...]]:
    options: list[list[int | None]] = []
    for port in ports:
        if port.batch is not None:
            options.append([port.batch])
        else:
            axes = [axis for axis, size in enumerate(port.sizes) if size in (None, 1) and axis != port.time]
            # What has no axis to give is the same for all rows: refused further on, if it is no control.
            options.append([*sorted(axes, key=lambda axis: (port.sizes[axis] is not None, axis))] or [None])
    shared: dict[str, int] = {}
    for port in ports:
        for symbol in set(filter(None, port.symbols)):
            shared[symbol] = shared.get(symbol, 0) + 1
    seen: set[tuple[int | None, ...]] = set()
    for symbol in sorted(shared, key=lambda each: -shared[each]):
        told = [
            [port.symbols.index(symbol)]
            if symbol in port.symbols and port.symbols.index(symbol) in choices
            else choices
            for port, choices in zip(ports, options, strict=True)
        ]
        for each in itertools.islice(itertools.product(*told), TRIES):
            if each not in seen:
                seen.add(each)
                yield each
    for each in itertools.islice(itertools.product(*options), TRIES * 4):
        if each not in seen:
            seen.add(each)
            yield each


def _freed(model: onnx.ModelProto, ports: Mapping[str, Port], steps: int) -> Found | None:
    """The network with these axes free, if rows keep apart along them."""
    random = np.random.default_rng(1)
    freed = copy_of(model)
    for value in freed.graph.input:
        port = ports[value.name]
        dims = value.type.tensor_type.shape.dim
        for axis, size in enumerate(port.sizes):
            dims[axis].Clear()
            if axis == port.batch:
                dims[axis].dim_param = "batch"
            elif axis == port.time:
                dims[axis].dim_param = "time"
            else:
                dims[axis].dim_value = size or 1
    together = {name: made_up(random, port, ROWS, steps) for name, port in ports.items()}
    alone = [{name: take(array, ports[name].batch, row) for name, array in together.items()} for row in range(ROWS)]
    reshapes: list[str] = []
    for _ in range(TRIES):
        try:
            trial = Trial(freed, plain=True)
            large = trial(together)
            break
        except Exception as error:
            require_memory(error)
            fixed = _free_reshape(freed, str(error), reshapes)
            if fixed is None:
                raise AdoptionRefused(
                    f"three rows do not run together: {_line(error)}; export the network with a free batch"
                ) from None
            freed = fixed
    else:
        raise AdoptionRefused("three rows do not run together, whichever Reshape is given a free batch")
    small = [trial(feed) for feed in alone]
    outputs: dict[str, int] = {}
    for name, array in large.items():
        grown = axis_of(small[0][name].shape, array.shape, ROWS)
        if grown is None:
            return None
        rows = [take(array, grown, row) for row in range(ROWS)]
        apart = max(distance(rows[0], rows[1]), distance(rows[1], rows[2]))
        off = max(distance(rows[row], small[row][name]) for row in range(ROWS))
        if off > max(SAME * apart, 1e-4):
            return None
        outputs[name] = grown
    return Found(freed, dict(ports), outputs, tuple(reshapes))


def _free_reshape(model: onnx.ModelProto, message: str, done: list[str]) -> onnx.ModelProto | None:
    """With the batch free in the Reshape that the message names; None where there is none, or no 1 left in it."""
    match = re.search(r"running Reshape node\. Name:'([^']*)'", message)
    if match is None or match[1] in done:
        return None
    node = next((each for each in model.graph.node if each.name == match[1]), None)
    if node is None:
        return None
    held = initializers(model.graph).get(node.input[1])
    if held is None:
        return None
    shape = numpy_helper.to_array(held).copy()
    ones = [axis for axis, size in enumerate(shape.tolist()) if size == 1]
    if not ones or (shape == -1).any():
        return None
    shape[ones[0]] = -1
    freed = copy_of(model)
    name = f"{held.name}.free{len(done)}"
    freed.graph.initializer.append(numpy_helper.from_array(shape, name))
    next(each for each in freed.graph.node if each.name == node.name).input[1] = name
    done.append(node.name)
    return freed


def find_time(model: onnx.ModelProto, found: Found, steps: int = 1) -> dict[str, int]:
    """The time axis of each output as long as the input; by calls of so many steps, and of three times as many."""
    random = np.random.default_rng(2)
    trial = Trial(model)
    one = trial({name: made_up(random, port, 2, steps) for name, port in found.inputs.items()})
    axes: dict[str, int] = {}
    try:
        three = trial({name: made_up(random, port, 2, 3 * steps) for name, port in found.inputs.items()})
    except Exception:  # it takes one step alone: the axis is where the input has it
        for name, array in one.items():
            for port in found.inputs.values():
                if (
                    port.time is not None
                    and port.time < array.ndim
                    and array.shape[port.time] == 1
                    and port.time != found.outputs[name]
                ):
                    axes[name] = port.time
        return axes
    for name, array in one.items():
        grown = axis_of(array.shape, three[name].shape, 3)
        if grown is not None and array.shape[grown] == steps:
            axes[name] = grown
    return axes


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
