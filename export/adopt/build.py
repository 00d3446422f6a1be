"""The step graph of an adopted network: rows first, states by name, one step a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.axes import Found
from carousel.export.adopt.graphs import all_names, constant, copy_of, prune, rename, set_nodes, sort_nodes, value_info
from carousel.export.adopt.lift import LIFTED
from carousel.export.adopt.pairing import Pair
from carousel.export.adopt.said import public_name
from carousel.export.adopt.trial import Array, Port

INNER = "net."
"""What the network's own tensors are called after, lest a port's name be one of theirs."""

STATE, NEXT, CONTEXT = "state.", "next_state.", "context."


@dataclass(frozen=True, slots=True)
class Built:
    """A step graph, and what its ports are.

    Args:
        model: the graph; axis 0 of everything is the batch.
        inputs: by the name of a port, the input of the file that it feeds.
        outputs: by the name of a port, the output of the file that it is.
        states: (before, after), by their names in the graph.
        of_states: by the name of a state, the input of the file; a carry's is the input that it goes before.
        context: inputs that are the same at every step of a sequence.
        initial: by state, one row of what it begins with, where that is not zeros.
        carries: by state, how many values of the input before are handed on.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    states: Sequence[tuple[str, str]]
    of_states: Mapping[str, str]
    context: Sequence[str]
    initial: Mapping[str, Array]
    carries: Mapping[str, int]


def build_step(
    found: Found,
    pairs: Sequence[Pair],
    times: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[np.generic]],
    carries: Mapping[str, int],
    initial: Mapping[str, Array],
    *,
    steps: bool = False,
) -> Built:
    """The graph of one step; or of many in a call, its time axis behind the batch.

    Args:
        found: the network, and the axes of its ports.
        pairs: its states.
        times: of each output that has one, the time axis.
        shapes: of each output, for one row and one step.
        dtypes: of each output.
        carries: by input, how many of the last values of a step are put before the next step's.
        initial: by input of a state, what it begins with, as the file has it; zeros where it is not there.
        steps: whether it is of many; then there are no carries, and every input and output has a time axis.
    """
    model = copy_of(found.model)
    graph = model.graph
    rename(graph, {name: INNER + name for name in all_names(graph)})
    befores, afters = {pair.before for pair in pairs}, {pair.after for pair in pairs}
    timed = any(port.time is not None for port in found.inputs.values())
    names = _Names()
    surgeon = _Surgeon(graph)
    del graph.input[:], graph.output[:]
    inputs: dict[str, str] = {}
    of_states: dict[str, str] = {}
    states: list[tuple[str, str]] = []
    context: list[str] = []
    first: dict[str, Array] = {}
    carried: dict[str, int] = {}
    for name, port in found.inputs.items():
        if name in befores:
            continue
        kind = CONTEXT if timed and port.time is None else ""
        public = names.of(name, kind)
        row = list(port.row)
        inputs[public] = name
        if kind:
            context.append(public)
        length = carries.get(name, 0)
        if length:
            row[-1] -= length
        graph.input.append(value_info(public, port.dtype, ["batch", *["steps"] * steps, *row]))
        whole = public
        if length:
            held = names.of(f"{name}_before", STATE)
            after = NEXT + held.removeprefix(STATE)
            graph.input.append(value_info(held, port.dtype, ["batch", *row[:-1], length]))
            whole = surgeon.node("Concat", held, public, axis=-1)
            surgeon.last(whole, len(row), length, after)
            graph.output.append(value_info(after, port.dtype, ["batch", *row[:-1], length]))
            states.append((held, after))
            of_states[held] = name
            carried[held] = length
        if steps and not kind:
            surgeon.steps_into(whole, port, INNER + name)
        else:
            surgeon.into(whole, port, INNER + name)
    for pair in pairs:
        port = found.inputs[pair.before]
        kept = port if not pair.before.startswith(LIFTED) else _without_directions(port)
        public = names.of(pair.before, STATE)
        after = NEXT + public.removeprefix(STATE)
        graph.input.append(value_info(public, port.dtype, ["batch", *kept.row]))
        surgeon.into(public, port, INNER + pair.before)
        surgeon.out_of(INNER + pair.after, found.outputs[pair.after], None, shapes[pair.after], kept.row, after)
        graph.output.append(value_info(after, port.dtype, ["batch", *kept.row]))
        states.append((public, after))
        of_states[public] = pair.before
        if pair.before in initial:
            first[public] = np.moveaxis(initial[pair.before], port.batch or 0, 0)[0].reshape(kept.row)
    outputs: dict[str, str] = {}
    told: list[onnx.ValueInfoProto] = []
    for name, shape in shapes.items():
        if name in afters:
            continue
        public = names.of(name, "")
        row = [size for axis, size in enumerate(shape) if axis not in (found.outputs[name], times.get(name))]
        if steps:
            surgeon.steps_out_of(INNER + name, found.outputs[name], times[name], len(shape), public)
        else:
            surgeon.out_of(INNER + name, found.outputs[name], times.get(name), shape, tuple(row), public)
        told.append(value_info(public, dtypes[name], ["batch", *["steps"] * steps, *row]))
        outputs[public] = name
    if not told:  # a network that says its states and no more
        for (_, after), pair in zip(states[len(carried) :], pairs, strict=True):
            public = names.of(pair.after, "")
            surgeon.node("Identity", after, result=public)
            told.append(value_info(public, dtypes[pair.after], ["batch", *found.inputs[pair.before].row]))
            outputs[public] = pair.after
    states_out = list(graph.output)
    del graph.output[:]
    graph.output.extend([*told, *states_out])
    set_nodes(graph, sort_nodes(graph))
    prune(graph)
    graph.name = "steps" if steps else "step"
    model.producer_name = ""
    del model.metadata_props[:]
    return Built(model, inputs, outputs, states, of_states, context, first, carried)


def _without_directions(port: Port) -> Port:
    """A recurrent node's state without its axis of directions, of which there is one."""
    return Port(port.name, port.dtype, port.sizes[1:], port.symbols[1:], 0)


class _Names:
    """Public names, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, name: str, kind: str) -> str:
        """A name after the file's."""
        if name.startswith(LIFTED):
            name = f"layer{name.removeprefix(LIFTED)}"
        public = public_name(name, self._taken, kind)
        self._taken.add(public)
        return public


class _Surgeon:
    """Adds nodes before and after a network."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def node(self, operator: str, *inputs: str, result: str | None = None, **attributes: object) -> str:
        """Add a node; its output's name."""
        self._count += 1
        name = result or f"port{self._count}"
        self._graph.node.append(
            helper.make_node(operator, list(inputs), [name], name=f"ports.{self._count}", **attributes)
        )
        return name

    def _ints(self, values: Sequence[int]) -> str:
        self._count += 1
        return constant(self._graph, f"ports.ints{self._count}", np.asarray(values, np.int64))

    def last(self, name: str, rank: int, length: int, result: str) -> None:
        """The last `length` along the last axis; rank is a row's."""
        self.node("Slice", name, self._ints([-length]), self._ints([2**31]), self._ints([rank]), result=result)

    def into(self, name: str, port: Port, result: str) -> None:
        """From [batch, *row] to the axes that the network has."""
        batch = port.batch or 0
        shape = list(port.shape(1))
        before = [size for axis, size in enumerate(shape[:batch]) if axis != port.time]
        if any(size != 1 for size in before):
            axes = [axis for axis in range(len(shape)) if axis not in (batch, port.time)]
            place = len([axis for axis in axes if axis < batch])
            rank = len(axes) + 1
            permutation = [*range(1, place + 1), 0, *range(place + 1, rank)]
            if port.time is None:
                self.node("Transpose", name, perm=permutation, result=result)
                return
            name = self.node("Transpose", name, perm=permutation)
        elif batch == 0 and port.time is None:
            self.node("Identity", name, result=result)
            return
        shape[batch] = -1
        self.node("Reshape", name, self._ints(shape), result=result)

    def steps_into(self, name: str, port: Port, result: str) -> None:
        """From [batch, steps, *row] to the axes that the network has."""
        others = iter(range(2, len(port.sizes)))
        permutation = [{port.batch: 0, port.time: 1}.get(axis) for axis in range(len(port.sizes))]
        self.node(
            "Transpose", name, perm=[next(others) if axis is None else axis for axis in permutation], result=result
        )

    def steps_out_of(self, name: str, batch: int, time: int, rank: int, result: str) -> None:
        """From the network's axes to [batch, steps, *row]."""
        others = [axis for axis in range(rank) if axis not in (batch, time)]
        self.node("Transpose", name, perm=[batch, time, *others], result=result)

    def out_of(
        self, name: str, batch: int, time: int | None, shape: Sequence[int], row: Sequence[int], result: str
    ) -> None:
        """From the network's axes to [batch, *row]."""
        if any(size != 1 for axis, size in enumerate(shape[:batch]) if axis != time):
            permutation = [batch, *(axis for axis in range(len(shape)) if axis != batch)]
            name = self.node("Transpose", name, perm=permutation)
        elif batch == 0 and time is None and len(row) == len(shape) - 1:
            self.node("Identity", name, result=result)
            return
        self.node("Reshape", name, self._ints([-1, *row]), result=result)
