"""Many steps in one call: what no state reaches runs over all T at once, the rest is the body of a Scan.

Axes: B batch rows, T steps, H hidden units.

What a layer makes of its input does not wait for the step before: it is one product over all steps. Only what states
lead to on the way to their next values is computed step by step, and nothing is projected to logits. States that need
one another are one stage, with a Scan of its own; stages that need others stand above them. Where one value alone goes
up from a stage, what is above is a graph of its own, so that one may work on a part of the ids while the one below
works on the next (service/engine/prefill/runner.py).

Sums are over integers and everything else works on one number at a time, so each value is the step graph's, bit for bit
(export/checks/prefill.py makes sure).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from carousel.export.passes.graph import Array, Graph, named, reads
from carousel.export.passes.lift import lifted
from carousel.export.passes.rounding import multiply_few
from carousel.export.passes.sums import sources_of
from carousel.models.errors import CarouselError
from carousel.models.graph import ABOVE, BELOW, STATE_PREFIX


class NoPrefill(CarouselError):
    """A step of which no prefill graph can be made."""


@dataclass(slots=True)
class _Stage:
    """States that need one another."""

    states: list[str]
    outside: list[onnx.NodeProto] = field(default_factory=list)
    """What runs over all steps, before the Scan."""
    body: list[onnx.NodeProto] = field(default_factory=list)
    """On the way from the states to their next values, and what is rounded of it for a stage above."""

    def reads(self) -> set[str]:
        return {name for node in (*self.outside, *self.body) for name in reads(node)}

    def makes(self) -> set[str]:
        return {name for node in (*self.outside, *self.body) for name in node.output}


def prefill(step: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The models of T steps (models/signature.py), the lowest first, that leave the states which the step leaves.

    Args:
        step: the model of one step.

    Raises:
        NoPrefill: an operator on the way is not known to run over all steps at once.
    """
    graph = Graph(step)
    context = [name for name in graph.inputs if name not in graph.states and graph.example[name].ndim > 1]
    if context:
        raise NoPrefill(f"a step reads {context[0]!r}, which is no id")
    sources = {name: found & graph.states.keys() for name, found in sources_of(graph).items()}
    stages = _stages(graph, sources)
    for stage in stages:
        _fill(graph, sources, stage, stages)
    groups: list[list[_Stage]] = [[]]
    handed: list[str] = []
    for place, stage in enumerate(stages):
        crossing = _crossing(graph, stages[place:])
        if place and len(crossing) == 1 and not crossing & graph.inputs.keys():
            groups.append([])
            handed += crossing
        groups[-1].append(stage)
    return [
        _model(graph, group, below, above, place)
        for place, (group, below, above) in enumerate(zip(groups, ["", *handed], [*handed, ""], strict=True))
    ]


def _stages(graph: Graph, sources: dict[str, frozenset[str]]) -> list[_Stage]:
    """In the order in which they can run."""
    needs = {state: {state, *sources[after]} for state, after in graph.states.items()}
    for _ in needs:  # until what is needed is needed by those who need it
        needs = {state: set().union(*(needs[each] for each in found)) for state, found in needs.items()}
    stages: dict[frozenset[str], list[str]] = {}
    for state in sorted(needs, key=lambda state: len(needs[state])):
        stages.setdefault(frozenset(needs[state]), []).append(state)
    return [_Stage(states) for states in stages.values()]


def _fill(graph: Graph, sources: dict[str, frozenset[str]], stage: _Stage, stages: list[_Stage]) -> None:
    """Find a stage's nodes, those below having theirs."""
    done = {id(node) for each in stages for node in (*each.outside, *each.body)}
    for node in graph.ordered([graph.states[state] for state in stage.states]):
        if id(node) in done:
            continue
        if any(sources[name].intersection(stage.states) for name in node.output):
            stage.body.append(node)
            continue
        if lifted(graph, node) is None:
            raise NoPrefill(f"{named(node)} is not known to run over all steps at once")
        below = [each for each in stages if node.input[0] in {name for inner in each.body for name in inner.output}]
        if node.op_type == "QuantizeLinear" and below:  # is handed up as it is rounded: a quarter to carry
            below[0].body.append(node)
        else:
            stage.outside.append(node)


def _crossing(graph: Graph, above: list[_Stage]) -> set[str]:
    """The values, ids too, that the stages above read and do not make."""
    read = set[str]().union(*(stage.reads() for stage in above))
    made = set[str]().union(*(stage.makes() for stage in above))
    states = {state for stage in above for state in stage.states}
    return read - made - states - graph.constants.keys() - {""}


def _model(graph: Graph, stages: list[_Stage], below: str, above: str, place: int) -> onnx.ModelProto:
    """One graph: `v.steps` <...>[T, B, ...] is what a value v is at all steps, `v.step` what it is in a Scan's body."""
    constants = dict(graph.constants)
    ids = [below] if below else [name for name in graph.inputs if name not in graph.states]
    states = [state for stage in stages for state in stage.states]
    inputs = [_value(BELOW if below else name, graph.example[name], "steps") for name in ids]
    inputs += [graph.inputs[state] for state in states]
    outputs = [graph.outputs[graph.states[state]] for state in states]
    nodes = [_turned(BELOW if below else name, f"{name}.steps", graph.example[name]) for name in ids]
    for depth, stage in enumerate(stages):
        wanted = {above} | set[str]().union(*(each.reads() for each in stages[depth + 1 :]))
        for node in stage.outside:
            over = lifted(graph, node)
            assert over is not None
            _rename(over, graph.constants, ".steps")
            nodes.append(over)
        nodes.append(_scan(graph, stage, wanted, constants))
    if above:
        nodes.append(_turned(f"{above}.steps", ABOVE, graph.example[above]))
        outputs.append(_value(ABOVE, graph.example[above], "steps"))
    used = {name for node in nodes for name in reads(node)}
    weights = [onnx.numpy_helper.from_array(each, name) for name, each in constants.items() if name in used]
    model = graph.wrapped(helper.make_graph(nodes, f"prefill{place}", inputs, outputs, weights))
    onnx.checker.check_model(model)
    return model


def _scan(graph: Graph, stage: _Stage, wanted: set[str], constants: dict[str, Array]) -> onnx.NodeProto:
    """Step after step: the states before and a step's part of what it reads in, the states after and the wanted out."""
    made = {name for node in stage.body for name in node.output}
    afters = [graph.states[state] for state in stage.states]
    read = {name for node in stage.body for name in reads(node)} | {name for name in afters if name not in made}
    sequences = sorted(read - made - set(stage.states) - graph.constants.keys() - {""})
    told = sorted(wanted & (made | set(stage.states)))
    nodes = []
    for node in stage.body:
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        _rename(inner, graph.constants, ".step")
        nodes += multiply_few(inner, constants) if node.op_type == "MatMulIntegerToFloat" else [inner]
    results = [f"{name}.next" for name in afters] + [f"{name}.told" for name in told]
    for name, result in zip([*afters, *told], results, strict=True):
        nodes.append(helper.make_node("Identity", [f"{name}.step"], [result]))
    body = helper.make_graph(
        nodes,
        f"steps of {', '.join(state.removeprefix(STATE_PREFIX) for state in stage.states)}",
        [_value(f"{name}.step", graph.example[name]) for name in (*stage.states, *sequences)],
        [_value(result, graph.example[name]) for name, result in zip([*afters, *told], results, strict=True)],
    )
    return helper.make_node(
        "Scan",
        [*stage.states, *(f"{name}.steps" for name in sequences)],
        [*afters, *(f"{name}.steps" for name in told)],
        body=body,
        num_scan_inputs=len(sequences),
    )


def _rename(node: onnx.NodeProto, constants: dict[str, Array], suffix: str) -> None:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise NoPrefill(f"{named(node)} holds a graph of its own")
    for names in (node.input, node.output):
        renamed = [name if not name or name in constants else name + suffix for name in names]
        del names[:]
        names.extend(renamed)


def _turned(value: str, result: str, example: Array) -> onnx.NodeProto:
    """[B, T, ...] and [T, B, ...] are each the other's."""
    return helper.make_node("Transpose", [value], [result], perm=[1, 0, *range(2, example.ndim + 1)])


def _value(name: str, example: Array, *steps: str) -> onnx.ValueInfoProto:
    shape = ["batch", *steps, *example.shape[1:]]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(example.dtype)), shape)
