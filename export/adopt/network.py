"""A stranger's network into a step graph: every stage in order, each saying what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from carousel.export.adopt.axes import find_batch, find_time
from carousel.export.adopt.branches import inline_branches
from carousel.export.adopt.build import Built, build_step
from carousel.export.adopt.check import Compared, FileRun, compare, repair_rows
from carousel.export.adopt.errors import AdoptionRefused, NotTheFile
from carousel.export.adopt.graphs import attribute, name_nodes
from carousel.export.adopt.lift import lift_states, runs_backwards
from carousel.export.adopt.loops import written_out_loops
from carousel.export.adopt.many import build_many, is_alike
from carousel.export.adopt.pairing import Pair, pair_states
from carousel.export.adopt.products import ROWS as GAIN_ROWS
from carousel.export.adopt.products import convolutions_as_products, time_ratio
from carousel.export.adopt.read import read_model
from carousel.export.adopt.repair import dequantize, written_out_rnn
from carousel.export.adopt.said import Said, require_known, require_runs, sized, with_controls
from carousel.export.adopt.trial import Array, Port, Trial, made_up, ports_of


@dataclass(frozen=True, slots=True)
class Adopted:
    """A step graph, why its states are what they are, and how near it is to the file; and the graph of many steps."""

    built: Built
    many: Built | None
    pairs: Sequence[Pair]
    compared: Compared
    run: FileRun


def adopt_step(content: bytes, said: Said, tell: Callable[[str], None]) -> Adopted:
    """The step graph of the network of an ONNX file.

    Args:
        content: of the file.
        said: what the caller says of it.
        tell: is told of each stage what it found.

    Raises:
        AdoptionRefused: it cannot be served as a step; with the node or tensor, and what to do.
    """
    original = read_model(content)
    file = onnx.load_model_from_string(content)
    require_known(original, said)
    model, controls = with_controls(original, said.fixed)
    name_nodes(model.graph)
    require_runs(model)
    if node := runs_backwards(model.graph):
        raise AdoptionRefused(
            f"{node!r} reads its input from the end: the network needs the whole input (--encoder-only)"
        )
    ports = [sized(port, said) for port in ports_of(model)]
    feeds = _first_feeds(ports)
    model, branches = inline_branches(model, feeds)
    if branches:
        tell(f"branches   {branches} that always go one way are written out")
    if said.dequantize:
        model, changed = dequantize(model)
        tell(f"weights    {changed} quantised products have float weights")
    model, lifted = lift_states(model, feeds)
    known = {port.name for port in ports}
    ports += [replace(port, batch=1) for port in ports_of(model) if port.name not in known]
    found = find_batch(model, ports)
    axes = ", ".join(f"{name} {port.batch}" for name, port in found.inputs.items())
    tell(f"batch      axis of each input: {axes}")
    for node in found.reshapes:
        tell(f"batch      Reshape {node!r} had it fixed")
    times = find_time(found.model, found) if said.times else {}
    random = np.random.default_rng(0)
    one = Trial(found.model)({name: made_up(random, port, 1) for name, port in found.inputs.items()})
    shapes = {name: array.shape for name, array in one.items()}
    dtypes = {name: array.dtype for name, array in one.items()}
    hidden = {each.before: each.after for each in lifted}
    pairs = pair_states(found.model, found, times, shapes, dtypes, said.states, hidden)
    for pair in pairs:
        tell(f"state      {pair.before} -> {pair.after}: {pair.why}")
    initial = {each.before: each.initial for each in lifted if each.initial is not None}
    built = build_step(found, pairs, times, shapes, dtypes, said.carries, initial)
    run = FileRun(file, controls, found.inputs, pairs, times)
    many = build_many(found, pairs, times, shapes, dtypes, said.carries, initial)
    written, count = written_out_loops(built.model)
    if count:
        try:
            adopted = _finished(replace(built, model=written), many, run, said, tell)
        except AdoptionRefused:  # they run more than once: they may stay
            tell(f"loops      {count} stay: they are not over the steps of a call")
        else:
            tell(f"loops      {count} over the steps of a call are written out for one step")
            return adopted
    try:
        return _finished(built, many, run, said, tell)
    except NotTheFile as refusal:
        raise AdoptionRefused(f"{refusal}{_looks_farther(model)}") from None


def _finished(built: Built, many: Built | None, run: FileRun, said: Said, tell: Callable[[str], None]) -> Adopted:
    """With rows that keep apart, compared with the file."""
    written, count = written_out_rnn(built.model)
    if count:
        built = replace(built, model=written)
        tell(f"rows       {count} RNN nodes are written as products, whose rows keep apart")
    if said.products:
        built = replace(built, model=_with_products(built.model, tell))
    built = replace(built, model=repair_rows(built.model, tell))
    compared = compare(run, built, dequantized=said.dequantize)
    tell(f"parity     {compared.largest:.1e} over {compared.steps} steps x {compared.rows} rows")
    if many is not None:
        alike = is_alike(many, built)
        tell(
            f"many       steps in one call give {'the same bits' if alike else 'other bits, and are taken one by one'}"
        )
        many = many if alike else None
    return Adopted(built, many, run.pairs, compared, run)


def _looks_farther(model: onnx.ModelProto) -> str:
    """Which convolutions may look at more than one step; nothing where there are none."""
    for node in model.graph.node:
        kernel = attribute(node, "kernel_shape", ())
        if max(kernel, default=1) > 1:
            return f"; {node.op_type} {node.name!r} has a kernel of {max(kernel)}: over time it needs the steps before"
    return ""


def _with_products(model: onnx.ModelProto, tell: Callable[[str], None]) -> onnx.ModelProto:
    written, count, of = convolutions_as_products(model)
    if not count:
        tell(f"products   none of {of} convolutions is over a few frames: nothing is written otherwise")
        return model
    ratio = time_ratio(model, written)
    told = f"products   {count} of {of} convolutions: a step of {GAIN_ROWS} rows takes {ratio:.2f} of the time"
    tell(told if ratio < 1 else f"{told}: left as they were")
    return written if ratio < 1 else model


def _first_feeds(ports: Sequence[Port]) -> list[dict[str, Array]]:
    """Inputs of 1, 2, 3 and 5 rows, by the axis that is most likely the batch."""
    random = np.random.default_rng(4)

    def likely(port: Port) -> int | None:
        if port.batch is not None:
            return port.batch
        axes = [axis for axis, size in enumerate(port.sizes) if size is None and axis != port.time]
        return axes[0] if axes else 0

    return [
        {port.name: made_up(random, replace(port, batch=likely(port)), rows) for port in ports} for rows in (1, 2, 3, 5)
    ]
