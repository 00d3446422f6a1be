"""A stranger's encoder: a network that needs its whole input, such as a bidirectional one, one call a sequence.

Sequences of unequal lengths go together where their lengths are written into every recurrent node: a padded row is then
what it is alone, to the bit, which is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.axes import Found, find_batch, find_time
from carousel.export.adopt.branches import inline_branches
from carousel.export.adopt.build import INNER
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
from carousel.export.adopt.lift import recurrent_nodes
from carousel.export.adopt.read import read_model
from carousel.export.adopt.repair import dequantize
from carousel.export.adopt.said import Said, public_name, require_known, sized, with_controls
from carousel.export.adopt.trial import Array, Arrays, Port, Trial, made_up, ports_of

LENGTHS = (5, 1, 7, 3, 7)
"""Of sequences that are padded together."""
SEQUENCE_LENGTHS = 4
"""Which input of a recurrent node says how long each row is."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder graph: [batch, time, ...] where there is time, [batch, ...] where not.

    Args:
        model: the graph.
        inputs: by the name of a port, the input of the file.
        outputs: by the name of a port, the output of the file.
        lengths: the input that says how long each row is; None where sequences of equal shape go together alone.
        timed: ports with an axis of time.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    lengths: str | None
    timed: frozenset[str]


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
    ports = [sized(port, said) for port in ports_of(model)]
    if lengths is not None and said.times.get(lengths) is None:
        raise AdoptionRefused(f"--lengths {lengths}: say which axis of it is time (--time {lengths}=1)")
    random = np.random.default_rng(5)
    likely = [replace(port, batch=port.batch if port.batch is not None else 0) for port in ports]
    feeds = [{port.name: made_up(random, port, rows, 4) for port in likely} for rows in (1, 2, 3, 5)]
    model, branches = inline_branches(model, feeds)
    if branches:
        tell(f"branches   {branches} that always go one way are written out")
    if said.dequantize:
        model, changed = dequantize(model)
        tell(f"weights    {changed} quantised products have float weights")
    given: str | None = None
    if lengths is not None:
        given = f"{lengths}_length"
        model = _with_lengths(model, given)
    known = {port.name for port in ports}
    ports += [replace(port, batch=0) for port in ports_of(model) if port.name not in known]
    found = find_batch(model, ports)
    times = find_time(found.model, found) if said.times else {}
    built = _built(found, times, given)
    _check(built, onnx.load_model_from_string(content), controls, found, times, said.dequantize)
    how = f"rows of {len(set(LENGTHS))} lengths padded together" if given else "rows of equal lengths together"
    tell(f"rows       {how} are what each is alone, bit for bit")
    return built


def _with_lengths(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model = copy_of(model)
    nodes = recurrent_nodes(model.graph)
    if not nodes:
        raise AdoptionRefused("--lengths: the network has no LSTM, GRU or RNN node to tell how long a row is")
    for node in nodes:
        while len(node.input) <= SEQUENCE_LENGTHS:
            node.input.append("")
        if not node.input[SEQUENCE_LENGTHS]:
            node.input[SEQUENCE_LENGTHS] = name
    model.graph.input.append(value_info(name, np.int32, ["batch"]))
    prune(model.graph)
    return model


def _built(found: Found, times: Mapping[str, int], lengths: str | None) -> Encoder:
    model = copy_of(found.model)
    graph = model.graph
    random = np.random.default_rng(6)
    one = Trial(model)(
        _filled({name: made_up(random, port, 1, 2) for name, port in found.inputs.items()}, lengths, [2])
    )
    rename(graph, {name: INNER + name for name in all_names(graph)})
    del graph.input[:], graph.output[:]
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    timed: set[str] = set()
    for name, port in found.inputs.items():
        public = public_name(name, inputs)
        inputs[public] = name
        row: list[int | str | None] = ["batch", *(["time"] if port.time is not None else []), *port.row]
        graph.input.append(value_info(public, port.dtype, row))
        first = [port.batch or 0, *([] if port.time is None else [port.time])]
        axes = [*first, *(axis for axis in range(len(port.sizes)) if axis not in first)]
        order = [axes.index(axis) for axis in range(len(axes))]
        graph.node.append(_moved(public, order, INNER + name))
        if port.time is not None:
            timed.add(public)
    for name, array in one.items():
        public = public_name(name, {**inputs, **outputs})
        outputs[public] = name
        first = [found.outputs[name], *([times[name]] if name in times else [])]
        axes = [*first, *(axis for axis in range(array.ndim) if axis not in first)]
        graph.node.append(_moved(INNER + name, axes, public))
        row = ["batch", *(["time"] if name in times else []), *(array.shape[axis] for axis in axes[len(first) :])]
        graph.output.append(value_info(public, array.dtype, row))
        if name in times:
            timed.add(public)
    set_nodes(graph, sort_nodes(graph))
    prune(graph)
    graph.name = "encoder"
    model.producer_name = ""
    del model.metadata_props[:]
    return Encoder(model, inputs, outputs, lengths, frozenset(timed))


def _moved(name: str, order: list[int], result: str) -> onnx.NodeProto:
    if order == sorted(order):
        return helper.make_node("Identity", [name], [result], name=f"ports.{result}")
    return helper.make_node("Transpose", [name], [result], perm=order, name=f"ports.{result}")


def _filled(feeds: dict[str, Array], lengths: str | None, long: list[int]) -> dict[str, Array]:
    return feeds if lengths is None else {**feeds, lengths: np.array(long, np.int32)}


def _check(
    built: Encoder,
    file: onnx.ModelProto,
    controls: Arrays,
    found: Found,
    times: Mapping[str, int],
    dequantized: bool,
) -> None:
    random = np.random.default_rng(13)
    trial, original = Trial(built.model), Trial(file)
    longs = list(LENGTHS) if built.lengths else [max(LENGTHS)] * len(LENGTHS)
    steps = max(longs)
    sources = {public: found.inputs[name] for public, name in built.inputs.items()}
    feeds: dict[str, Array] = {}
    for public, port in sources.items():
        if public == built.lengths:
            feeds[public] = np.array(longs, np.int32)
        else:
            array = made_up(random, port, len(longs), steps)
            feeds[public] = _rows_first(array, port)
    company = trial(feeds)
    for row, long in enumerate(longs):
        own = {
            public: (array[row : row + 1, :long] if public in built.timed else array[row : row + 1])
            for public, array in feeds.items()
        }
        alone = trial(own)
        theirs = original(
            {
                **controls,
                **{
                    built.inputs[public]: _as_in_file(array, sources[public])
                    for public, array in own.items()
                    if public != built.lengths
                },
            }
        )
        for public, name in built.outputs.items():
            seen = company[public][row : row + 1]
            seen = seen[:, :long] if public in built.timed else seen
            if seen.tobytes() != alone[public].tobytes():
                told = "a padded row" if built.lengths else "a row"
                raise AdoptionRefused(
                    f"{told} is not alone what it is in company, at output {name!r}"
                    + (
                        "; dynamic quantisation scales by the whole batch: adopt it with float weights (--dequantize)"
                        if not dequantized
                        else "; leave out --lengths, and rows of equal lengths alone go together"
                    )
                )
            expected = _rows_first(
                theirs[name], Port(name, seen.dtype, theirs[name].shape, (), found.outputs[name], times.get(name))
            )
            error = float(np.abs(np.asarray(expected, np.float64) - np.asarray(seen, np.float64)).max(initial=0.0))
            if not dequantized and not error <= 1e-5:
                raise AdoptionRefused(f"output {name!r} is {error:.2g} from the file's own")


def _rows_first(array: Array, port: Port) -> Array:
    first = [port.batch or 0, *([] if port.time is None else [port.time])]
    return np.moveaxis(array, first, range(len(first)))


def _as_in_file(array: Array, port: Port) -> Array:
    first = [port.batch or 0, *([] if port.time is None else [port.time])]
    return np.ascontiguousarray(np.moveaxis(array, range(len(first)), first))
