"""A stranger's encoder: a network that needs its whole input, such as a bidirectional one, one call a sequence.

Sequences of unequal lengths go together where their lengths are written into every recurrent node: a padded row is then
what it is alone, to the bit, which is tried. An input that masks what is padded is filled from the lengths, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.axes import Found, find_batch, find_time
from carousel.export.adopt.branches import inline_branches
from carousel.export.adopt.build import INNER
from carousel.export.adopt.check import INT8_TOLERANCE, TOLERANCE
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import (
    all_names,
    copy_of,
    name_nodes,
    prune,
    rename,
    set_nodes,
    sort_nodes,
    value_info,
)
from carousel.export.adopt.lengths import fill_mask, with_lengths
from carousel.export.adopt.read import read_model
from carousel.export.adopt.repair import DYNAMIC, dequantize, sums_in_order
from carousel.export.adopt.said import Said, public_name, require_known, require_runs, sized, with_controls
from carousel.export.adopt.trial import Array, Arrays, Port, Trial, distance, made_up, ports_of

LENGTHS = (5, 1, 7, 3, 7)
"""Of sequences that are padded together; two of one length, to see what depends on a sequence."""
SEVERAL = 4
"""Steps with which axes are looked for: a convolution needs some."""
NEAR = 1e-4
"""What rounding makes of a row in company, at most."""
COUNTED = "_length"
"""What the input that says how long rows are is called: after theirs."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder graph: [batch, time, ...] where there is time, [batch, ...] where not.

    Args:
        model: the graph.
        file: the network, untouched.
        inputs: by the name of a port, the input of the file.
        outputs: by the name of a port, the output of the file.
        ports: the inputs, by their names in the file.
        lengths: the input that says how long each row is; None where sequences of equal shape go together alone.
        timed: ports with an axis of time.
        fixed: what inputs of the file are given that are no ports: controls, and masks that hide nothing.
        masked: what a mask holds where a place is padded.
        alone: whether a row is in company not what it is alone: it must run by itself.
        largest: how far it was from the file.
    """

    model: onnx.ModelProto
    file: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    ports: Mapping[str, Port]
    lengths: str | None
    timed: frozenset[str]
    fixed: Mapping[str, Array | bool]
    masked: bool
    alone: bool = False
    largest: float = 0.0

    def run_file(self, feeds: Arrays) -> dict[str, Array]:
        """What the file says of one sequence, in the file's terms.

        Args:
            feeds: by port. [1, T, ...] or [1, ...] each
        """
        steps = max((array.shape[1] for name, array in feeds.items() if name in self.timed), default=1)
        fixed = {
            name: value if isinstance(value, np.ndarray) else np.full(self.ports[name].shape(1, steps), value)
            for name, value in self.fixed.items()
        }
        own = {self.inputs[public]: array for public, array in feeds.items() if public != self.lengths}
        moved = {name: np.ascontiguousarray(_as_in_file(array, self.ports[name])) for name, array in own.items()}
        return Trial(self.file)({**fixed, **moved})

    def made_up(self, random: np.random.Generator, lengths: Sequence[int]) -> dict[str, Array]:
        """A batch of random sequences, by port."""
        feeds: dict[str, Array] = {}
        for public, name in self.inputs.items():
            port = self.ports[name]
            array = made_up(random, port, len(lengths), max(lengths))
            feeds[public] = np.array(lengths, port.dtype) if public == self.lengths else _rows_first(array, port)
        return feeds

    def row(self, arrays: Arrays, place: int, length: int) -> dict[str, Array]:
        """One of a batch by itself, its padding cut away."""
        return {
            name: array[place : place + 1, :length] if name in self.timed else array[place : place + 1]
            for name, array in arrays.items()
        }


def adopt_encoder(content: bytes, said: Said, lengths: str | None, tell: Callable[[str], None]) -> Encoder:
    """The encoder graph of the network of an ONNX file.

    Args:
        content: of the file.
        said: what the caller says of it; `times` for a free axis of time.
        lengths: the input whose rows may be of unequal lengths, which are written into recurrent nodes; None for none.
        tell: is told of each stage what it found.

    Raises:
        AdoptionRefused: it cannot be served; with the node or tensor, and what to do.
    """
    original = read_model(content)
    require_known(original, said)
    model, controls = with_controls(original, said.fixed)
    name_nodes(model.graph)
    require_runs(model)
    if lengths is not None and said.times.get(lengths) is None:
        raise AdoptionRefused(f"--lengths {lengths}: say which axis of it is time (--time {lengths}=1)")
    masks = [] if lengths is None else [port for port in ports_of(model) if port.dtype.kind == "b"]
    ports = [sized(port, said) for port in ports_of(model) if port not in masks]
    likely = [replace(port, batch=port.batch if port.batch is not None else 0) for port in ports]
    likely += [replace(port, batch=0, time=1) for port in masks]
    random = np.random.default_rng(5)
    feeds = [{port.name: made_up(random, port, rows, 4) for port in likely} for rows in (1, 2, 3, 5)]
    model, branches = inline_branches(model, feeds)
    if branches:
        tell(f"branches   {branches} that always go one way are written out")
    if said.dequantize:
        model, changed = dequantize(model)
        tell(f"weights    {changed} quantised products have float weights")
    said_of = _Asked(onnx.load_model_from_string(content), controls, ports, masks, lengths, said)
    tried = [_tried(model, said_of, valid=valid) for valid in ((True, False) if masks else (True,))]
    near = [each for each in tried if each.apart <= NEAR] or tried
    near.sort(key=lambda each: -each.varying)
    if len(near) > 1 and near[0].varying == near[1].varying:
        raise AdoptionRefused(f"input {masks[0].name!r} may be true at padded places or at all others: nothing tells")
    best = near[0]
    encoder = best.encoder
    for mask in masks:
        tell(f"mask       {mask.name} is filled from the lengths: {str(encoder.masked).lower()} where a row is padded")
    if best.sums:
        tell(f"rows       {best.sums} sums over steps are taken in the order of the steps")
    how = f"rows of {len(set(LENGTHS))} lengths padded together" if lengths else "rows of equal lengths together"
    if best.mixed is None:
        tell(f"rows       {how} are what each is alone, bit for bit")
    else:
        _require_alone(encoder, best.mixed)
        tell(f"rows       {how} are not what each is alone: one a call")
    tell(f"parity     {encoder.largest:.1e} over {len(LENGTHS)} sequences")
    return encoder


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is made an encoder: a file, its controls, inputs and masks, whose rows have lengths, and what was said."""

    file: onnx.ModelProto
    controls: Arrays
    ports: Sequence[Port]
    masks: Sequence[Port]
    lengths: str | None
    said: Said


@dataclass(frozen=True, slots=True)
class _Tried:
    """An encoder, and how it does.

    Args:
        encoder: what was tried.
        varying: how many outputs say something of a sequence.
        apart: how far a row in company is from itself alone, of its largest value where that is above 1.
        mixed: an output that it gives otherwise there; None where bits are the same.
        sums: how many sums were written otherwise.
    """

    encoder: Encoder
    varying: int
    apart: float
    mixed: str | None
    sums: int = 0


def _tried(model: onnx.ModelProto, asked: _Asked, *, valid: bool) -> _Tried:
    """The encoder whose masks are `valid` where nothing is padded; if rows mix, with sums in order."""
    fed, lengths, counted = list(asked.ports), asked.lengths, None
    if lengths is not None:
        counted = f"{lengths}{COUNTED}"
        model = with_lengths(model, counted)
        for mask in asked.masks:
            fill_mask(model.graph, mask.name, lengths, counted, asked.said.times[lengths], valid=valid)
        fed.append(Port(counted, np.dtype(np.int32), (None,), (), 0, counts=True))
    masks = {mask.name: replace(mask, batch=0, time=1) for mask in asked.masks}

    def seen(model: onnx.ModelProto) -> _Tried:
        found = find_batch(model, fed, SEVERAL)
        times = find_time(found.model, found, SEVERAL) if asked.said.times else {}
        built = _built(found, times, counted)
        fixed: dict[str, Array | bool] = {**asked.controls, **dict.fromkeys(masks, valid)}
        ports = {**found.inputs, **masks}
        whole = replace(built, file=asked.file, fixed=fixed, masked=not valid, ports=ports)
        return _checked(whole, found, times, dequantized=asked.said.dequantize)

    first = seen(model)
    if first.mixed is None:
        return first
    ordered, count = sums_in_order(model)
    second = seen(ordered) if count else first
    return replace(second, sums=count) if second.mixed is None else first


def _built(found: Found, times: Mapping[str, int], lengths: str | None) -> Encoder:
    model = copy_of(found.model)
    graph = model.graph
    random = np.random.default_rng(6)
    two, four = (
        Trial(model)({name: made_up(random, port, 1, steps) for name, port in found.inputs.items()}) for steps in (2, 4)
    )
    rename(graph, {name: INNER + name for name in all_names(graph)})
    del graph.input[:], graph.output[:]
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    timed: set[str] = set()
    given: str | None = None
    for name, port in found.inputs.items():
        public = public_name(name, inputs)
        inputs[public] = name
        given = public if name == lengths else given
        row: list[int | str | None] = ["batch", *(["time"] if port.time is not None else []), *port.row]
        graph.input.append(value_info(public, port.dtype, row))
        first = [port.batch or 0, *([] if port.time is None else [port.time])]
        axes = [*first, *(axis for axis in range(len(port.sizes)) if axis not in first)]
        order = [axes.index(axis) for axis in range(len(axes))]
        graph.node.append(_moved(public, order, INNER + name))
        if port.time is not None:
            timed.add(public)
    for name, array in two.items():
        public = public_name(name, {**inputs, **outputs})
        outputs[public] = name
        first = [found.outputs[name], *([times[name]] if name in times else [])]
        axes = [*first, *(axis for axis in range(array.ndim) if axis not in first)]
        graph.node.append(_moved(INNER + name, axes, public))
        row = ["batch", *(["time"] if name in times else []), *(array.shape[axis] for axis in axes[len(first) :])]
        graph.output.append(value_info(public, array.dtype, row))
        if name in times:
            timed.add(public)
        elif array.shape != four[name].shape:
            raise AdoptionRefused(
                f"output {name!r} is {list(array.shape)} for 2 steps and {list(four[name].shape)} for 4, "
                "not as long as the input: say how long that is (--shape), in place of --time"
            )
    set_nodes(graph, sort_nodes(graph))
    prune(graph)
    graph.name = "encoder"
    model.producer_name = ""
    del model.metadata_props[:]
    return Encoder(model, model, inputs, outputs, {}, given, frozenset(timed), {}, masked=False)


def _moved(name: str, order: list[int], result: str) -> onnx.NodeProto:
    if order == sorted(order):
        return helper.make_node("Identity", [name], [result], name=f"ports.{result}")
    return helper.make_node("Transpose", [name], [result], perm=order, name=f"ports.{result}")


def _checked(encoder: Encoder, found: Found, times: Mapping[str, int], *, dequantized: bool) -> _Tried:
    trial = Trial(encoder.model)
    longs = list(LENGTHS) if encoder.lengths else [max(LENGTHS)] * len(LENGTHS)
    feeds = encoder.made_up(np.random.default_rng(13), longs)
    company = trial(feeds)
    largest, apart, mixed = 0.0, 0.0, None
    told: list[dict[str, Array]] = []
    for place, long in enumerate(longs):
        own = encoder.row(feeds, place, long)
        told.append(trial(own))
        seen, theirs = encoder.row(company, place, long), encoder.run_file(own)
        for public, name in encoder.outputs.items():
            alone = told[-1][public]
            size = max(1.0, float(np.abs(np.asarray(alone, np.float64)).max(initial=0.0)))
            if seen[public].tobytes() != alone.tobytes():
                apart, mixed = max(apart, distance(seen[public], alone) / size), name
            port = Port(name, alone.dtype, theirs[name].shape, (), found.outputs[name], times.get(name))
            error = distance(_rows_first(theirs[name], port), alone)
            largest = max(largest, error)
            allowed = INT8_TOLERANCE if dequantized else TOLERANCE
            if not error <= allowed * size:
                raise AdoptionRefused(f"output {name!r} is {error:.2g} from the file's own (allowed is {allowed:g})")
    first, second = told[longs.index(max(longs))], told[-1]
    varying = sum(not np.array_equal(first[name], second[name]) for name in encoder.outputs)
    return _Tried(replace(encoder, largest=largest, alone=mixed is not None), varying, apart, mixed)


def _require_alone(encoder: Encoder, output: str) -> None:
    """Hold that an encoder whose rows mix may be served one row a call."""
    if any(node.op_type in DYNAMIC for node in encoder.model.graph.node):
        raise AdoptionRefused(
            f"a row is not alone what it is in company, at output {output!r}: dynamic quantisation scales by the whole "
            "batch; adopt it with float weights (--dequantize)"
        )
    if encoder.lengths is not None:
        raise AdoptionRefused(
            f"a padded row is not alone what it is in company, at output {output!r}; "
            "leave out --lengths, and rows of equal lengths alone go together"
        )


def _rows_first(array: Array, port: Port) -> Array:
    first = [port.batch or 0, *([] if port.time is None else [port.time])]
    return np.moveaxis(array, first, range(len(first)))


def _as_in_file(array: Array, port: Port) -> Array:
    first = [port.batch or 0, *([] if port.time is None else [port.time])]
    return np.moveaxis(array, range(len(first)), first)
