"""An encoder beside a step: what it gives becomes the context and the first states that the step's graph takes.

A step's context has a fixed size. An encoder whose output is as long as its input is filled up to that: what is padded
must be masked by the step, which is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.build import Built
from carousel.export.adopt.check import TOLERANCE, FileRun
from carousel.export.adopt.encoder import LENGTHS, Encoder
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import constant, copy_of, prune, rename, set_nodes, sort_nodes, value_info
from carousel.export.adopt.pairing import bare
from carousel.export.adopt.trial import Array, Trial, distance, made_up, row_ports

STEPS = 40


@dataclass(frozen=True, slots=True)
class Beside:
    """An encoder whose outputs are what a step takes, under the step's names.

    Args:
        encoder: the graph; its `outputs` are those that the step takes.
        max_length: of an input; None where nothing bounds it.
        largest: how far both together were from both files.
    """

    encoder: Encoder
    max_length: int | None
    largest: float


def put_beside(encoder: Encoder, step: Built, run: FileRun) -> Beside:
    """Fit an encoder to a step.

    Args:
        encoder: as it was adopted.
        step: likewise.
        run: the step's file, to be run its own way.

    Raises:
        AdoptionRefused: it does not give what the step takes, or both together are not what both files are.
    """
    rows = {port.name: port for port in row_ports(step.model)}
    ours = {name: step.inputs[name] for name in step.context} | {
        before: name for before, name in step.of_states.items() if before not in {**step.initial, **step.carries}
    }
    given = {target: source for target, name in ours.items() if (source := _source(encoder, name)) is not None}
    if missing := [name for name in step.context if name not in given]:
        raise AdoptionRefused(
            f"the encoder gives no {ours[missing[0]]!r}, which every step reads: its outputs are "
            f"{', '.join(encoder.outputs.values())}; give one of them that name"
        )
    if not given:
        raise AdoptionRefused(
            f"nothing of the encoder's ({', '.join(encoder.outputs.values())}) is called like an input of the step "
            f"({', '.join(ours.values())})"
        )
    model = copy_of(encoder.model)
    graph = model.graph
    del graph.output[:]
    longest: set[int] = set()
    names = {source: f"given.{source}" for source in given.values()}
    rename(graph, names)
    for target, source in given.items():
        row = rows[target].row
        whole = names[source]
        if source in encoder.timed:
            longest.add(row[0])
            whole = _filled(graph, whole, target, row, rows[target].dtype, encoder.masked)
        graph.node.append(helper.make_node("Identity", [whole], [target], name=f"gives.{target}"))
        graph.output.append(value_info(target, rows[target].dtype, ["batch", *row]))
    if len(longest) > 1:
        raise AdoptionRefused(f"what the encoder gives is filled up to {sorted(longest)} places at once (--shape)")
    set_nodes(graph, sort_nodes(graph))
    prune(graph)
    fitted = replace(
        encoder, model=model, outputs={target: encoder.outputs[source] for target, source in given.items()}
    )
    most = min(longest, default=None)
    return Beside(fitted, most, _compare(fitted, step, run, [min(long, most or long) for long in LENGTHS]))


def _source(encoder: Encoder, name: str) -> str | None:
    """The output of an encoder that is called as an input of a step is; None where none is, or two are."""
    for ends in (None, False, True):
        same = [
            public
            for public, other in encoder.outputs.items()
            if (other == name if ends is None else bare(other, ends=ends) == bare(name, ends=ends))
        ]
        if len(same) == 1:
            return same[0]
    return None


def _filled(
    graph: onnx.GraphProto, name: str, target: str, row: Sequence[int], dtype: np.dtype[np.generic], masked: bool
) -> str:
    """[batch, time, ...] filled up to a row's places, with zeros or, in a mask, with what says that it is padded."""

    def held(kind: str, value: object) -> str:
        return constant(graph, f"{target}.{kind}", value)

    def named(kind: str) -> str:
        return f"{target}.{kind}"

    value = onnx.numpy_helper.from_array(np.full(1, masked if dtype.kind == "b" else 0, dtype))
    zero, one, end = held("zero", np.array([0])), held("one", np.array([1])), held("end", np.array([row[0]]))
    graph.node.extend(
        [
            helper.make_node("Shape", [name], [named("shape")]),
            helper.make_node("Gather", [named("shape"), zero], [named("rows")]),
            helper.make_node("Concat", [named("rows"), held("row", np.array(row))], [named("blank_shape")], axis=0),
            helper.make_node("ConstantOfShape", [named("blank_shape")], [named("blank")], value=value),
            helper.make_node("Concat", [name, named("blank")], [named("long")], axis=1),
            helper.make_node("Slice", [named("long"), zero, end, one], [named("filled")]),
        ]
    )
    return named("filled")


def _compare(encoder: Encoder, step: Built, run: FileRun, lengths: Sequence[int]) -> float:
    """Sequences together, each begun by the encoder, against both files, alone with each."""
    random = np.random.default_rng(15)
    whole = encoder.made_up(random, lengths)
    given = Trial(encoder.model)(whole)
    rows = {port.name: port for port in row_ports(step.model)}
    inputs = [
        {name: made_up(random, rows[name], len(lengths)) for name in step.inputs if name not in step.context}
        for _ in range(STEPS)
    ]
    states = {
        before: given[before] if before in given else np.zeros(rows[before].shape(len(lengths)), rows[before].dtype)
        for before, _ in step.states
    }
    trial, file = Trial(step.model), Trial(run.file)
    told: list[dict[str, Array]] = []
    for fed in inputs:
        told.append(trial({**fed, **{name: given[name] for name in step.context}, **states}))
        states = {before: told[-1][after] for before, after in step.states}
    largest = 0.0
    for place, length in enumerate(lengths):
        begun = encoder.run_file(encoder.row(whole, place, length))
        own = {name: np.zeros(port.shape(1), port.dtype) for name, port in run.ports.items()}
        for target, name in encoder.outputs.items():
            own[step.inputs.get(target) or step.of_states[target]] = begun[name]
        for number, fed in enumerate(inputs):
            own |= {
                step.inputs[name]: row[place].reshape(run.ports[step.inputs[name]].shape(1))
                for name, row in fed.items()
            }
            theirs = file({**run.controls, **own})
            own |= {pair.before: theirs[pair.after] for pair in run.pairs}
            for public, name in step.outputs.items():
                expected = theirs[name].reshape(-1)
                error = distance(told[number][public][place].reshape(-1), expected)
                largest = max(largest, error)
                if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0))):
                    raise AdoptionRefused(
                        f"begun by the encoder, a sequence of {length} places has output {name!r} {error:.2g} from the "
                        "files' own: the step does not mask what is filled up, or its first states are others"
                    )
    return largest
